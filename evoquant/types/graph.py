"""The graph of a model as every layer sees it: tensors, quantizable operations, and the groups that genes belong to.

A ``ModelGraph`` is made from a captured program by ``evoquant.graph``; it has no torch in it, can be saved as JSON and
is all that the search and the hardware models know of a model. All shapes are those of one image (batch size 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Self


class OpKind(StrEnum):
    """What a kernel computes."""

    CONV = "conv2d"
    LINEAR = "linear"
    MATMUL = "matmul"


class Role(StrEnum):
    """The part an operation plays in the network, found from its place in the graph."""

    STEM = "stem"
    CONV = "conv"
    POINTWISE = "pointwise"
    DEPTHWISE = "depthwise"
    ATTENTION_QKV = "attention_qkv"
    ATTENTION_QK = "attention_qk"
    ATTENTION_AV = "attention_av"
    ATTENTION_OUT = "attention_out"
    MLP_IN = "mlp_in"
    MLP_OUT = "mlp_out"
    BRIDGE = "bridge"
    GATE = "gate"
    HEAD = "head"

    @property
    def is_attention(self) -> bool:
        """Whether the operation belongs to an attention."""
        return self.value.startswith("attention")


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """Kernel, stride, padding and dilation as (height, width), and the number of groups."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True, slots=True)
class Node:
    """One tensor of the captured program, and the operation that makes it.

    Attributes:
        name: Unique name in the captured graph.
        kind: What makes it: ``input``, ``conv2d``, ``linear``, ``matmul``, ``softmax``, ``layer_norm``,
            ``batch_norm``, ``group_norm``, ``add``, ``mul``, ``silu``, ``gelu``, ``relu``, ``hardswish``, ``mean``,
            ``reshape``, ``permute``, ...: the name of the ATen operator without namespace, overload and underscore.
        inputs: Names of the nodes it reads (tensors that depend on the image only).
        shape: Its shape for one image.
        is_view: Whether it shares memory with its first input (reshape, permute, slice, ...).
        module: Path of the module whose forward contains it; empty for the model itself.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    is_view: bool
    module: str

    @property
    def elements(self) -> int:
        """Number of values."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class Op:
    """One convolution, linear layer or attention matmul: what a gene gives a precision to.

    Attributes:
        name: Module path (``stages.2.1.transformer.0.attn.qkv``); functional matmuls end in ``.qk``, ``.av`` or
            ``.matmul``.
        kind: What its kernel computes.
        role: Its part in the network.
        block: Module path of the block that holds it.
        block_kind: ``stem``, ``inverted_residual``, ``mobilevit``, ``transformer``, ``conv``, ``head``, ...
        group: Name of the group whose gene it obeys.
        node: Name of the node that holds its result.
        inputs: Names of the nodes it reads: one, or two for a matmul.
        input_shape: Shape of its first operand.
        weight_shape: Shape of its weight; for a matmul, of its second operand.
        output_shape: Shape of its result.
        geometry: Of a convolution, else None.
        gemm: The equivalent ``(batch, m, n, k)``: ``batch`` independent products of (m, k) by (k, n). For a convolution
            ``batch`` is its number of groups, m the output pixels, n the output channels and k the kernel volume of
            one group.
        macs: Multiply-accumulates for one image.
        weight_count: Stored weights, 0 for a matmul.
        has_bias: Whether a bias is added.
        producers: Names of the ops whose results reach its inputs through other operations only.
        consumers: Names of the ops that it reaches likewise.
    """

    name: str
    kind: OpKind
    role: Role
    block: str
    block_kind: str
    group: str
    node: str
    inputs: tuple[str, ...]
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    geometry: ConvGeometry | None
    gemm: tuple[int, int, int, int]
    macs: int
    weight_count: int
    has_bias: bool
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Operations that obey one gene, for example the q, k and v projections of one input."""

    name: str
    ops: tuple[str, ...]


@dataclass(frozen=True)
class ModelGraph:
    """A whole model: its tensors in the order of computation, its quantizable operations and their groups.

    Attributes:
        model: Name of the model.
        input_shape: Shape of one input, batch size 1.
        nodes: All tensors, in the order of computation.
        ops: The quantizable operations, in the order of computation.
        groups: Each operation is in exactly one.
        output: Name of the node that the model returns.
        parameters: Number of parameters of the whole model.
    """

    model: str
    input_shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    ops: tuple[Op, ...]
    groups: tuple[Group, ...]
    output: str
    parameters: int

    @cached_property
    def op(self) -> Mapping[str, Op]:
        """Operations by name."""
        return {op.name: op for op in self.ops}

    @cached_property
    def node(self) -> Mapping[str, Node]:
        """Tensors by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """For each tensor the nodes that read it, each once, in order."""
        found: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node.name)
        return {name: tuple(read_by) for name, read_by in found.items()}

    @cached_property
    def group(self) -> Mapping[str, Group]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all quantizable operations for one image."""
        return sum(op.macs for op in self.ops)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``, also after a way through JSON (which turns tuples into lists)."""
        return cls(
            model=data["model"],
            input_shape=tuple(data["input_shape"]),
            nodes=tuple(Node(**_tupled(node)) for node in data["nodes"]),
            ops=tuple(_read_op(op) for op in data["ops"]),
            groups=tuple(Group(**_tupled(group)) for group in data["groups"]),
            output=data["output"],
            parameters=data["parameters"],
        )


def _tupled(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _read_op(data: Mapping[str, Any]) -> Op:
    fields = _tupled(data)
    geometry = fields["geometry"]
    fields["geometry"] = None if geometry is None else ConvGeometry(**_tupled(geometry))
    return Op(**{**fields, "kind": OpKind(fields["kind"]), "role": Role(fields["role"])})
