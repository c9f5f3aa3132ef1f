"""A device as its YAML file describes it: what it executes, how fast, and at which energy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evoquant.hardware.provenance import Kind, Quantity, Sourced, kinds_of
from evoquant.hardware.work import WorkClass, is_depthwise
from evoquant.types.graph import Op, OpKind
from evoquant.types.precision import FLOAT_BITS, QuantizationGranularity, QuantizationScheme
from evoquant.types.target import HardwareTarget

FLOAT_TYPES = {"fp32": 32, "fp16": 16, "bf16": 16}
_INTEGER_TYPE = re.compile(r"^w([1-9]|1[0-6]|32)a([1-9]|1[0-6]|32)$")
_RANGE = re.compile(r"^w(\d+)-(\d+)a(\d+)(?:-(\d+))?$")
_STRICT = ConfigDict(extra="forbid", frozen=True)


class Precision(NamedTuple):
    """A pair of widths: of the weights, and of the activations."""

    weight_bits: int
    activation_bits: int

    @property
    def label(self) -> str:
        """``w8a8``; ``fp32`` when both are 32."""
        return "fp32" if self == (FLOAT_BITS, FLOAT_BITS) else f"w{self.weight_bits}a{self.activation_bits}"

    def covers(self, other: Precision) -> bool:
        """Whether neither width is smaller."""
        return self.weight_bits >= other.weight_bits and self.activation_bits >= other.activation_bits


def parse_precision(label: str) -> Precision:
    """The widths of ``w4a8``, or of ``fp32``.

    Raises:
        ValueError: If the label is neither.
    """
    if label == "fp32":
        return Precision(FLOAT_BITS, FLOAT_BITS)
    match = _INTEGER_TYPE.match(label)
    if match is None:
        raise ValueError(f"A precision is written 'fp32' or like 'w4a8', not {label!r}")
    return Precision(int(match[1]), int(match[2]))


def expand_precisions(text: str) -> tuple[Precision, ...]:
    """The pairs of widths of one entry of ``stores``: ``fp32``, ``w8a8``, or ranges as in ``w2-8a8`` and ``w2-8a4-8``.

    Raises:
        ValueError: If the text is none of these.
    """
    match = _RANGE.match(text)
    if match is None:
        return (parse_precision(text),)
    first, last, narrow, wide = int(match[1]), int(match[2]), int(match[3]), int(match[4] or match[3])
    pairs = [(w, a) for w in range(first, last + 1) for a in range(narrow, wide + 1)]
    return tuple(parse_precision(f"w{w}a{a}") for w, a in pairs)


class NativeType(NamedTuple):
    """Operands that the device multiplies in one instruction.

    Attributes:
        name: ``fp32``, ``fp16``, ``bf16``, or like ``w8a8``.
        weight_bits: Width of the weight operand.
        activation_bits: Width of the activation operand.
        peak_gmacs_per_s: Most multiply-accumulates per second of the whole device, in 10⁹.
    """

    name: str
    weight_bits: int
    activation_bits: int
    peak_gmacs_per_s: float

    @property
    def is_float(self) -> bool:
        """Whether the operands are floating point."""
        return self.name in FLOAT_TYPES


class Memory(BaseModel):
    """Bandwidths that kernels achieve, and the on-chip memory that intermediate tensors can stay in."""

    model_config = _STRICT

    dram_gb_per_s: Quantity
    cache_gb_per_s: Quantity
    cache_bytes: Quantity


class Overhead(BaseModel):
    """Time per operation and per inference that is spent on neither arithmetic nor memory.

    ``result_macs`` are multiply-accumulates that each result of a product costs beside its own, so that short sums are
    slower than long ones; None for 0.
    """

    model_config = _STRICT

    operation_us: Quantity
    inference_us: Quantity
    result_macs: Quantity | None = None


class Power(BaseModel):
    """Power drawn whatever is executed; ``board_w`` is an upper bound while working, where it is known."""

    model_config = _STRICT

    static_w: Quantity
    board_w: Quantity | None = None


class Energy(BaseModel):
    """Energy of single operations and of moved bits."""

    model_config = _STRICT

    mac_fp32_pj: Quantity
    mac_fp16_pj: Quantity
    multiply_int8_pj: Quantity
    accumulate_int32_pj: Quantity
    unpack_weight_pj: Quantity
    dram_pj_per_bit: Quantity
    cache_pj_per_bit: Quantity


class Support(Sourced):
    """One way in which a device executes some operations.

    Attributes:
        ops: Kinds of operations (``conv2d``, ``linear``, ``matmul``), or ``depthwise``.
        stores: Stored precisions, such as ``w4a8``, or ranges of them, such as ``w2-8a8``.
        executes: The native type that they all execute as; None for the fastest type that covers the stored widths.
        weight_schemes: Schemes of the weights; float weights need none.
        activation_schemes: Schemes of the activations.
        granularities: Sharing of weight scales.
        group_sizes: Group sizes that ``per_group`` takes, as text; empty for any.
        weights: ``symmetric`` if weights must have no zero point.
        activations: ``symmetric`` if activations must have no zero point.
    """

    ops: Annotated[tuple[Literal["conv2d", "linear", "matmul", "depthwise"], ...], Field(min_length=1)]
    stores: Annotated[tuple[str, ...], Field(min_length=1)]
    executes: str | None = None
    weight_schemes: tuple[QuantizationScheme, ...] = (QuantizationScheme.UNIFORM, QuantizationScheme.POWER_OF_TWO)
    activation_schemes: tuple[QuantizationScheme, ...] = (QuantizationScheme.UNIFORM, QuantizationScheme.POWER_OF_TWO)
    granularities: tuple[QuantizationGranularity, ...] = (
        QuantizationGranularity.PER_TENSOR,
        QuantizationGranularity.PER_CHANNEL,
    )
    group_sizes: tuple[str, ...] = ()
    weights: Literal["symmetric", "any"] = "symmetric"
    activations: Literal["symmetric", "any"] = "any"

    @model_validator(mode="after")
    def _stores_are_precisions(self) -> Self:
        for text in self.stores:
            expand_precisions(text)
        return self

    @cached_property
    def precisions(self) -> tuple[Precision, ...]:
        """``stores`` as pairs of widths, narrow ones first."""
        return tuple(sorted((pair for text in self.stores for pair in expand_precisions(text)), key=sum))

    @property
    def ground(self) -> str:
        """The kind of the rule and what it rests on, for messages."""
        return f"{self.kind}: {self.source or self.how or self.why}"

    def applies_to(self, op: Op) -> bool:
        """Whether the rule speaks of this operation; ``conv2d`` does not speak of depthwise convolutions."""
        name = "depthwise" if op.kind is OpKind.CONV and is_depthwise(op) else op.kind.value
        return name in self.ops


class Refusal(Sourced):
    """A reason for which a device executes no quantized operation at all."""

    reason: str


class Device(BaseModel):
    """A device that a model can be deployed on; see ``hardware_models/README.md`` for its file.

    Attributes:
        schema_version: ``evoquant-device/1``.
        name: Name of the file without its suffix.
        title: Name for people.
        target: The family it belongs to.
        runtime: The software whose rules and kernels are described.
        float_type: The native type of what is not quantized.
        sources: What the figures cite, by key.
        cores_count: Cores that the peak rates are the sum of.
        peak_gmacs_per_s: By native type, in 10⁹ multiply-accumulates per second of all cores.
        utilisation_fraction: Share of the peak that kernels achieve: by work class, or by ``type/class``.
        support: What it executes. A configuration is legal if one rule allows it.
        fused: Kinds of nodes that a kernel applies while storing its result, at no further cost.
        fused_note: What that rests on.
        activations: What kernels read and write between each other: ``codes``, or ``float`` if each kernel quantizes
            its input itself, at the rate of its native type for elementwise work.
        weights_from: Where the weights of an operation are when it starts: ``dram``, or ``cache`` if inferences follow
            each other and an operation fits the cache with them.
        refuses_quantized: Why it executes nothing quantized, else None.
        isa: Instruction set of the kernels that its latencies are measured with, where the device is this machine; None
            for the best one.
    """

    model_config = _STRICT

    schema_version: Annotated[Literal["evoquant-device/1"], Field(alias="schema")]
    name: str
    title: str
    target: HardwareTarget
    runtime: str
    float_type: Literal["fp32", "fp16", "bf16"]
    sources: dict[str, str]
    cores_count: Quantity
    peak_gmacs_per_s: dict[str, Quantity]
    utilisation_fraction: dict[str, Quantity]
    memory: Memory
    overhead: Overhead
    power: Power
    energy: Energy
    fused: tuple[str, ...]
    fused_note: str
    activations: Literal["codes", "float"] = "codes"
    weights_from: Literal["dram", "cache"] = "dram"
    support: Annotated[tuple[Support, ...], Field(min_length=1)]
    refuses_quantized: Refusal | None = None
    isa: str | None = None

    @property
    def is_this_machine(self) -> bool:
        """Whether its latencies can be measured here."""
        return self.target is HardwareTarget.HOST_CPU

    @cached_property
    def types(self) -> dict[str, NativeType]:
        """Native types by name, the fastest first and of equals the narrowest."""
        found = [NativeType(name, *_widths(name), quantity.value) for name, quantity in self.peak_gmacs_per_s.items()]
        found.sort(key=lambda native: (-native.peak_gmacs_per_s, native.weight_bits * native.activation_bits))
        return {native.name: native for native in found}

    @property
    def float_bytes(self) -> int:
        """Bytes of a value that is not quantized."""
        return FLOAT_TYPES[self.float_type] // 8

    def utilisation(self, native: NativeType, work: WorkClass) -> Quantity:
        """The share of the peak of ``native`` that operations of a class achieve."""
        return self.utilisation_fraction.get(f"{native.name}/{work}") or self.utilisation_fraction[work]

    def with_figures(self, **fields: object) -> Device:
        """A copy with some fields replaced; they are not checked again."""
        copy = self.model_copy(update=fields)
        copy.__dict__.pop("types", None)
        return copy

    def quantities(self) -> Iterator[tuple[str, Quantity]]:
        """Every number of the file with its key path, in the order of the file."""
        yield from _quantities_in("", {name: getattr(self, name) for name in type(self).model_fields})

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of figures that occur, from the best known to the weakest."""
        return kinds_of(quantity for _, quantity in self.quantities())


def _widths(name: str) -> tuple[int, int]:
    if name in FLOAT_TYPES:
        return FLOAT_BITS, FLOAT_BITS
    return parse_precision(name)


def _quantities_in(path: str, value: object) -> Iterator[tuple[str, Quantity]]:
    if isinstance(value, Quantity):
        yield path, value
    elif isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _quantities_in(f"{path}.{key}" if path else key, inner)
