"""What a packed model executes: a flat list of steps over buffers. Plain values; what is saved is what is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from torch import Tensor

from evoquant.deploy.weights import StoredWeight
from evoquant.types import LayerQuantConfig

ALIGNMENT = 16
"""Buffers start at multiples of so many values: a cache line."""


@dataclass(frozen=True, slots=True)
class View:
    """Part of a buffer as an array: strides in values, 0 for a repeated axis."""

    buffer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of a tensor.

    Attributes:
        elements: Number of float32 values.
        constant: Name of the stored tensor that fills it; None for one that is written while running.
        offset: Where it begins in the memory that all share; buffers that are never needed together overlap.
        is_codes: Whether it holds codes of 8 bits, four in the place of a value; views of it count codes.
    """

    elements: int
    constant: str | None = None
    offset: int = 0
    is_codes: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One call.

    Attributes:
        kind: Name of the kernel, or ``torch``, or ``fake_quantize``.
        node: Name of the node of the captured program whose result it gives, or prepares.
        reads: Operands by name.
        writes: The result.
        settings: Everything else: plain JSON values.
    """

    kind: str
    node: str
    reads: Mapping[str, View]
    writes: View
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole model.

    Attributes:
        model: Its name.
        input_shape: Shape of one image, (channels, height, width).
        input: Where the image goes, seen in that shape.
        output: Where the result is, seen as (classes,) or whatever the model returns for one image.
        buffers: Memory of all tensors.
        steps: The calls.
        plan: The precision of every operation.
        weights: Stored weights by operation.
        constants: Biases, norms and other stored tensors by name.
        fallbacks: What no kernel does, by node or operation, with the reason.
        provenance: Versions and hashes.
    """

    model: str
    input_shape: tuple[int, ...]
    input: View
    output: View
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    plan: Mapping[str, LayerQuantConfig]
    weights: Mapping[str, StoredWeight]
    constants: Mapping[str, Tensor]
    fallbacks: Mapping[str, str]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arena_elements(self) -> int:
        """Values of the memory that the buffers share."""
        return max((b.offset + b.elements for b in self.buffers if b.constant is None), default=0)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all stored tensors."""
        constants = sum(tensor.nbytes for tensor in self.constants.values())
        return constants + sum(weight.stored_bytes for weight in self.weights.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as plain JSON values."""
        return {
            "model": self.model,
            "input_shape": list(self.input_shape),
            "input": asdict(self.input),
            "output": asdict(self.output),
            "plan": {name: config.to_dict() for name, config in self.plan.items()},
            "fallbacks": dict(self.fallbacks),
            "provenance": dict(self.provenance),
            "weight_shapes": {name: list(weight.shape) for name, weight in self.weights.items()},
            "buffers": [asdict(buffer) for buffer in self.buffers],
            "steps": [asdict(step) for step in self.steps],
        }

    def tensors(self) -> dict[str, Tensor]:
        """Every stored tensor by a name of its own."""
        named = {f"constants/{name}": tensor for name, tensor in self.constants.items()}
        for op, weight in self.weights.items():
            named |= {f"weights/{op}/{part}": tensor for part, tensor in weight.tensors.items()}
        return named

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of ``to_dict`` and ``tensors``.

        Raises:
            KeyError, TypeError, ValueError: If something is missing or malformed.
        """
        plan = {name: LayerQuantConfig.from_dict(config) for name, config in data["plan"].items()}
        weights: dict[str, StoredWeight] = {}
        for op, shape in data["weight_shapes"].items():
            prefix = f"weights/{op}/"
            parts = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if "weight" not in parts:
                raise KeyError(f"{prefix}weight")
            weights[op] = StoredWeight(tuple(shape), plan[op], parts)
        constants = {
            name.removeprefix("constants/"): value for name, value in tensors.items() if name.startswith("constants/")
        }
        return cls(
            data["model"], tuple(data["input_shape"]), _view(data["input"]), _view(data["output"]),
            tuple(Buffer(**buffer) for buffer in data["buffers"]), tuple(_step(step) for step in data["steps"]),
            plan, weights, constants, dict(data["fallbacks"]), dict(data["provenance"]),
        )  # fmt: skip


def _view(data: Mapping[str, Any]) -> View:
    return View(data["buffer"], tuple(data["shape"]), tuple(data["strides"]), data["offset"])


def _step(data: Mapping[str, Any]) -> Step:
    reads = {name: _view(view) for name, view in data["reads"].items()}
    return Step(data["kind"], data["node"], reads, _view(data["writes"]), data["settings"])
