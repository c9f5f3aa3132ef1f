"""The tensors of a graph that are stored: who reads them, how wide they are, and which live at the same time.

The rules, of which peak memory, moved bytes and conversions are consequences:

* A view (reshape, permute, slice) shares the memory of its first input.
* A tensor that only quantized operations read is stored at the widest of their activation widths, rounded up to whole
  bytes. Any other reader, and the caller who gets the result, wants floating point: 4 bytes.
* An activation function alone on the result of an operation is part of its kernel: the tensor between is not stored.
* So are factors of channels in front of a depthwise convolution, behind another operation or its activation function.
* An elementwise operation writes over an input of as many values that nothing reads afterwards, except over the image.
* Scratch memory of kernels is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from evoquant.types.graph import ModelGraph, Node, OpKind, Role
from evoquant.types.precision import FLOAT_BITS

FLOAT_BYTES = 4
ACTIVATION_FUNCTIONS = frozenset(
    {"relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "leaky_relu", "clamp"}
)
IN_PLACE = ACTIVATION_FUNCTIONS | {
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "exp",
    "pow",
    "sqrt",
    "rsqrt",
    "softmax",
    "dropout",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A stored tensor.

    Attributes:
        node: The node that makes it.
        producer: Index of the operation that makes it, also where its activation function is applied; None if it is
            made by something else.
        op_readers: Indices of the operations that read it, in order.
        float_readers: How many other nodes read it; the caller who gets the result counts as one.
        born: Position of the node that writes it.
        dies: Position of the last node that needs it.
    """

    node: Node
    producer: int | None
    op_readers: tuple[int, ...]
    float_readers: int
    born: int
    dies: int


class TensorTable:
    """The stored tensors of one graph.

    Args:
        graph: The graph; operations are counted in the order of ``graph.ops``.
    """

    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph
        self.fused = _fused_nodes(graph)
        self.gains = _gain_nodes(graph, self.fused)
        self.tensors = _tensors(graph, {**self.fused, **self.gains})

    @cached_property
    def results(self) -> dict[str, str]:
        """By the node of an operation, the node whose values its kernel writes."""
        own = {op.node: op.node for op in self.graph.ops}
        for parts in (self.fused, self.gains):
            own |= {op_node: name for name, op_node in parts.items()}
        return own

    def element_bytes(
        self, activation_bits: npt.NDArray[np.int64], *, float_bytes: int = FLOAT_BYTES
    ) -> npt.NDArray[np.int64]:
        """Bytes of one value of every tensor.

        Args:
            activation_bits: Of each operation, shape (..., operations).
            float_bytes: Bytes of a value in floating point.

        Returns:
            Shape (..., tensors).
        """
        width = np.where(activation_bits >= FLOAT_BITS, float_bytes, -(-activation_bits // 8))
        padded = np.concatenate([width, np.full((*width.shape[:-1], 1), float_bytes)], axis=-1)
        index, starts = self._readers
        result: npt.NDArray[np.int64] = np.maximum.reduceat(padded[..., index], starts, axis=-1)
        return result

    def peak_bytes(self, activation_bits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Most bytes of tensors that live at the same time, of one or many plans: shape (..., operations) to (...)."""
        live = (self.element_bytes(activation_bits) * self.elements).astype(np.float64) @ self._alive.T
        peak: npt.NDArray[np.int64] = live.max(axis=-1).astype(np.int64)
        return peak

    @cached_property
    def elements(self) -> npt.NDArray[np.int64]:
        """Values of each tensor."""
        return np.array([tensor.node.elements for tensor in self.tensors], dtype=np.int64)

    @cached_property
    def accesses(self) -> npt.NDArray[np.int64]:
        """How often each tensor is written and read."""
        return np.array([1 + len(t.op_readers) + t.float_readers for t in self.tensors], dtype=np.int64)

    @cached_property
    def _readers(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Indices of the readers of all tensors, one after the other, and where each tensor begins.

        The index after the last operation stands for a reader of floating point.
        """
        index: list[int] = []
        starts: list[int] = []
        for tensor in self.tensors:
            starts.append(len(index))
            index.extend([len(self.graph.ops)] if tensor.float_readers or not tensor.op_readers else tensor.op_readers)
        return np.array(index, dtype=np.int64), np.array(starts, dtype=np.int64)

    @cached_property
    def _alive(self) -> npt.NDArray[np.float64]:
        """Which tensors live at each moment after which one dies; the other moments cannot be the peak."""
        born = np.array([tensor.born for tensor in self.tensors])
        dies = np.array([tensor.dies for tensor in self.tensors])
        moments = np.unique(dies)[:, None]
        return ((born <= moments) & (moments <= dies)).astype(np.float64)


def _fused_nodes(graph: ModelGraph) -> dict[str, str]:
    """Activation functions that are part of the kernel before them: their names, and those of the operations' nodes."""
    op_nodes = {op.node for op in graph.ops}
    readers: dict[str, int] = {}
    for node in graph.nodes:
        for name in set(node.inputs):
            readers[name] = readers.get(name, 0) + 1
    return {
        node.name: node.inputs[0]
        for node in graph.nodes
        if node.kind in ACTIVATION_FUNCTIONS
        and len(node.inputs) == 1
        and node.inputs[0] in op_nodes
        and readers[node.inputs[0]] == 1
        and node.inputs[0] != graph.output
    }


def _gain_nodes(graph: ModelGraph, fused: dict[str, str]) -> dict[str, str]:
    """Products with stored numbers that the kernel before them applies: their names, and those of its nodes."""
    ops = {op.node: op for op in graph.ops}
    found: dict[str, str] = {}
    for op in graph.ops:
        node = graph.node[op.inputs[0]]
        if op.role is not Role.DEPTHWISE or node.kind != "mul" or len(node.inputs) != 1:
            continue
        source = node.inputs[0]
        maker = ops.get(fused.get(source, source))
        is_alone = graph.readers[source] == (node.name,) and graph.readers[node.name] == (op.node,)
        if maker is not None and maker.kind is OpKind.CONV and maker.role is not Role.DEPTHWISE and is_alone:
            found[node.name] = maker.node
    return found


def _tensors(graph: ModelGraph, fused: dict[str, str]) -> tuple[Tensor, ...]:
    position = {node.name: index for index, node in enumerate(graph.nodes)}
    op_index = {op.node: index for index, op in enumerate(graph.ops)}
    root: dict[str, str] = {}
    for node in graph.nodes:
        root[node.name] = root[node.inputs[0]] if node.is_view and node.inputs else node.name
    replaced = {graph.node[name].inputs[0] for name in fused}
    stored = [node for node in graph.nodes if root[node.name] == node.name and node.name not in replaced]
    op_readers: dict[str, list[int]] = {node.name: [] for node in graph.nodes}
    float_readers = dict.fromkeys(op_readers, 0)
    last = {node.name: position[node.name] for node in graph.nodes}
    for reader in graph.nodes:
        if reader.is_view:
            continue
        for name in {root[name] for name in reader.inputs}:
            last[name] = max(last[name], position[reader.name])
            if reader.name in op_index:
                op_readers[name].append(op_index[reader.name])
            else:
                float_readers[name] += 1
    result = root[graph.output]
    float_readers[result] += 1
    last[result] = len(graph.nodes) - 1
    born = {name: position[fused.get(name, name)] for name in position}
    overwritten = _overwritten(graph, root, last, fused)
    return tuple(
        Tensor(
            node,
            op_index.get(fused.get(node.name, node.name)),
            tuple(op_readers[node.name]),
            float_readers[node.name],
            born[node.name],
            last[node.name] - (node.name in overwritten),
        )
        for node in stored
    )


def _overwritten(graph: ModelGraph, root: dict[str, str], last: dict[str, int], fused: dict[str, str]) -> set[str]:
    """Tensors that an elementwise operation writes its result over; at that moment they no longer count."""
    found: set[str] = set()
    for index, node in enumerate(graph.nodes):
        if node.kind not in IN_PLACE or node.is_view or node.name in fused:
            continue
        for name in dict.fromkeys(root[name] for name in node.inputs):
            source = graph.node[name]
            if source.kind != "input" and last[name] == index and source.elements == node.elements:
                found.add(name)
                break
    return found
