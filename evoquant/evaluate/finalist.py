"""A plan with weights of its own: what is worth more time than a candidate of a search gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from evoquant.calibrate.cache import write_whole
from evoquant.calibrate.compensate import QuantizedWeight
from evoquant.errors import DataError
from evoquant.evaluate.simulate import Plan
from evoquant.quant import QuantParams
from evoquant.types import LayerQuantConfig, QuantizationScheme

FORMAT_VERSION = 3
_METADATA = "evoquant.finalist"


@dataclass(frozen=True, slots=True, eq=False)
class Finalist:
    """A plan with weights that were fitted to it as a whole.

    Attributes:
        plan: Precision of every operation.
        weights: By operation: the quantized weight, its scales, and the bias that goes with it; others are as in the
            search.
    """

    plan: Plan
    weights: Mapping[str, QuantizedWeight]


def save_finalist(finalist: Finalist, path: Path) -> None:
    """Write plan, weights, scales and biases to one safetensors file, all or nothing.

    Raises:
        DataError: If the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    weights: dict[str, Any] = {}
    for name, stored in finalist.weights.items():
        tensors[f"{name}/weight"] = stored.weight.contiguous()
        if stored.bias is not None:
            tensors[f"{name}/bias"] = stored.bias.contiguous()
        weights[name] = {
            "params": _described(name, stored.params, tensors),
            "steps": list(stored.steps),
            "error": stored.error,
        }
    header = {
        "version": FORMAT_VERSION,
        "plan": {name: config.to_dict() for name, config in finalist.plan.items()},
        "weights": weights,
    }
    write_whole(path, save(tensors, metadata={_METADATA: json.dumps(header)}))


def load_finalist(path: Path) -> Finalist:
    """Read a finalist back.

    Raises:
        DataError: If the file is missing, damaged, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[_METADATA])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        if header["version"] == FORMAT_VERSION:
            return _read(header, tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot read a finalist ({error}).") from error
    raise DataError(
        f"{path}: expected a finalist of version {FORMAT_VERSION}, but got {header['version']}. Fit the plan again."
    )


def _read(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Finalist:
    weights = {
        name: QuantizedWeight(
            tensors[f"{name}/weight"],
            _params(name, stored["params"], tensors),
            tensors.get(f"{name}/bias"),
            tuple(stored["steps"]),
            stored["error"],
        )
        for name, stored in header["weights"].items()
    }
    plan = {name: LayerQuantConfig.from_dict(config) for name, config in header["plan"].items()}
    return Finalist(plan, weights)


def _described(name: str, params: QuantParams, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Plain JSON values of parameters, whose tensors are stored under this name."""
    tensors[f"{name}/scale"] = params.scale.contiguous()
    tensors[f"{name}/zero_point"] = params.zero_point.contiguous()
    described = {field.name: getattr(params, field.name) for field in fields(params)}
    return {**described, "scheme": params.scheme.value, "scale": None, "zero_point": None}


def _params(name: str, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantParams:
    stored = {"scale": tensors[f"{name}/scale"], "zero_point": tensors[f"{name}/zero_point"]}
    return QuantParams(**{**described, **stored, "scheme": QuantizationScheme(described["scheme"])})
