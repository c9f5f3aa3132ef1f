"""A plan with weights of its own: what is worth more time than a candidate of a search gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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

FORMAT_VERSION = 1
_METADATA = "evoquant.finalist"


@dataclass(frozen=True, slots=True, eq=False)
class Finalist:
    """A plan whose weights were fitted to it as a whole.

    Attributes:
        plan: Precision of every operation.
        weights: By operation; what is not in it is quantized as in the search.
    """

    plan: Plan
    weights: Mapping[str, QuantizedWeight]


def save_finalist(finalist: Finalist, path: Path) -> None:
    """Write plan, weights, scales and biases to one safetensors file, all or nothing.

    Raises:
        DataError: If the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for name, stored in finalist.weights.items():
        params = stored.params
        tensors[f"{name}/weight"] = stored.weight.contiguous()
        tensors[f"{name}/scale"] = params.scale.contiguous()
        tensors[f"{name}/zero_point"] = params.zero_point.contiguous()
        if stored.bias is not None:
            tensors[f"{name}/bias"] = stored.bias.contiguous()
        described[name] = {
            "scheme": params.scheme.value,
            "bits": params.bits,
            "q_min": params.q_min,
            "q_max": params.q_max,
            "axis": params.axis,
            "group_size": params.group_size,
            "steps": list(stored.steps),
            "error": stored.error,
        }
    header = {
        "version": FORMAT_VERSION,
        "plan": {name: config.to_dict() for name, config in finalist.plan.items()},
        "weights": described,
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
        version, plan, weights = header["version"], header["plan"], header["weights"]
        if version == FORMAT_VERSION:
            return Finalist(
                {name: LayerQuantConfig.from_dict(config) for name, config in plan.items()},
                {name: _read(name, described, tensors) for name, described in weights.items()},
            )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot read a finalist ({error}).") from error
    raise DataError(f"{path}: expected a finalist of version {FORMAT_VERSION}, but got {version}.")


def _read(name: str, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
    params = QuantParams(
        QuantizationScheme(described["scheme"]),
        described["bits"],
        tensors[f"{name}/scale"],
        tensors[f"{name}/zero_point"],
        described["q_min"],
        described["q_max"],
        described["axis"],
        described["group_size"],
    )
    return QuantizedWeight(
        tensors[f"{name}/weight"],
        params,
        tensors.get(f"{name}/bias"),
        tuple(described["steps"]),
        described["error"],
    )
