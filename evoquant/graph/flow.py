"""Ways through the graph: from which products a tensor comes, which it reaches, and where residual branches join."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from evoquant.types.graph import Node, Op, OpKind

ACTIVATIONS = frozenset(
    {
        "relu",
        "relu6",
        "silu",
        "gelu",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "tanh",
        "mish",
        "elu",
        "leaky_relu",
        "selu",
    }
    | {"softplus", "hardtanh", "celu", "prelu", "clamp"}
)
REDUCTIONS = frozenset(
    {"mean", "sum", "amax", "amin", "max", "std", "var"}
    | {"adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool1d"}
)


class Flow:
    """The tensors and products of one model as a directed graph.

    Args:
        tensors: In the order of computation.
        products: By the name of the node that holds their result.
    """

    def __init__(self, tensors: Sequence[Node], products: Mapping[str, Op]) -> None:
        self.tensors = {node.name: node for node in tensors}
        self.products = products
        self.order = {node.name: position for position, node in enumerate(tensors)}
        self._sources: dict[str, frozenset[str]] = {}
        self._producers: dict[str, frozenset[str]] = {}

    @cached_property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the nodes that read a node."""
        found: dict[str, list[str]] = {name: [] for name in self.tensors}
        for node in self.tensors.values():
            for source in dict.fromkeys(node.inputs):
                found[source].append(node.name)
        return {name: tuple(names) for name, names in found.items()}

    def is_join(self, name: str) -> bool:
        """Whether the node adds two different tensors."""
        node = self.tensors[name]
        return node.kind in ("add", "sub") and len(set(node.inputs)) > 1

    def is_weighted(self, name: str) -> bool:
        """Whether the node is a convolution or a linear layer."""
        return name in self.products and self.products[name].kind is not OpKind.MATMUL

    def is_depthwise(self, name: str) -> bool:
        """Whether the node is a convolution that never mixes channels."""
        geometry = self.products[name].geometry if name in self.products else None
        return geometry is not None and geometry.groups == self.products[name].input_shape[1] > 1

    def is_pointwise(self, name: str) -> bool:
        """Whether the node maps the channels of each position alone: a linear layer or a dense 1x1 convolution."""
        if not self.is_weighted(name):
            return False
        geometry = self.products[name].geometry
        return geometry is None or (geometry.kernel == (1, 1) and geometry.groups == 1)

    def producers(self, name: str) -> frozenset[str]:
        """The products whose results reach the node through other operations, itself included if it is one."""
        if name in self.products:
            return frozenset({name})
        if name not in self._producers:
            reached = [self.producers(source) for source in self.tensors[name].inputs]
            self._producers[name] = frozenset().union(*reached)
        return self._producers[name]

    def sources(self, name: str) -> frozenset[str]:
        """Like ``producers``, but empty behind a sum of branches of different origin: a stream has no single source."""
        if name in self.products:
            return frozenset({name})
        if name not in self._sources:
            reached = [self.sources(source) for source in self.tensors[name].inputs]
            mixed = self.is_join(name) and len(set(reached)) > 1
            self._sources[name] = frozenset() if mixed or not reached else frozenset().union(*reached)
        return self._sources[name]

    def consumers(self, name: str) -> frozenset[str]:
        """The products that read the node through other operations."""
        return frozenset(node for node in self.after(name) if node in self.products)

    def after(self, name: str, *, through_joins: bool = True) -> Iterator[str]:
        """Nodes after this one, up to and including the next products; without ``through_joins`` also the next sums."""
        return self._walk(self.readers[name], forward=True, through_joins=through_joins)

    def before(self, names: Iterable[str], *, through_joins: bool = True) -> Iterator[str]:
        """These nodes and those before them, up to and including the nearest products."""
        return self._walk(names, forward=False, through_joins=through_joins)

    def _walk(self, start: Iterable[str], *, forward: bool, through_joins: bool) -> Iterator[str]:
        waiting, seen = list(start), set()
        while waiting:
            name = waiting.pop(0)
            if name in seen:
                continue
            seen.add(name)
            yield name
            if name not in self.products and (through_joins or not self.is_join(name)):
                waiting.extend(self.readers[name] if forward else self.tensors[name].inputs)
