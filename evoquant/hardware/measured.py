"""Latency as the sum of measured kernels: what a packed model executes, case by case."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from typing import Literal, Protocol

from evoquant.errors import HardwareError, KernelError
from evoquant.hardware.attention import fused_attentions
from evoquant.hardware.code_tensors import code_edges, reads_codes, writes_codes
from evoquant.hardware.device import Device
from evoquant.hardware.latency import LatencyEstimate
from evoquant.hardware.legality import legalise
from evoquant.hardware.provenance import Kind
from evoquant.hardware.roofline import fused_nodes
from evoquant.hardware.table import Case, Entry, LatencyTable
from evoquant.hardware.tensors import TensorTable
from evoquant.types.graph import ModelGraph, Node, Op, OpKind
from evoquant.types.precision import LayerQuantConfig
from evoquant.types.support import UNEVEN_ACTIVATIONS

_ROWS_OF_LAST_AXIS = frozenset({"softmax", "_softmax", "layer_norm", "native_layer_norm"})
_MEANS = frozenset({"mean", "sum", "adaptive_avg_pool2d"})
_SAME_WORK = {"sub": "add", "div": "mul"}


class Kernels(Protocol):
    """Names the kernels that a model executes; the module ``evoquant.kernels`` is one."""

    @property
    def KernelCase(self) -> Callable[[str, tuple[int, ...], str], Case]:  # noqa: N802 - the name of a class
        """Makes a case."""
        ...

    def case_of(self, op: Op, config: LayerQuantConfig) -> Case:
        """What is executed for an operation."""
        ...

    def float_case(self, node_kind: str, elements: int, *, columns: int | None = None) -> Case:
        """What is executed for a node that stays in floating point."""
        ...


@dataclass(frozen=True, slots=True)
class FloatWork:
    """The floating-point work between the operations of a graph.

    Attributes:
        cases: A case for each node that costs time.
        by_copy: Kinds of nodes that no kernel does; a copy of as many values stands for each.
    """

    cases: tuple[Case, ...]
    by_copy: tuple[str, ...]


class MeasuredLatency:
    """Sums the entries of a latency table.

    Kernels take and give floating-point tensors and quantize inside, but for a result that one other product alone
    reads: it is handed over as codes (``code_edges``). What an operation changes for its neighbour, by reading real
    values or uneven codes or by giving no codes, it is charged, at the neighbour's W8A8. So time is a sum over
    operations. An activation function alone on the result of an operation is timed with it (``gemm+silu``), the softmax
    of an attention with the product before it (``matmul+softmax``, then ``softmax+matmul``). Nodes of the kinds that
    the device fuses cost nothing; any other node that is neither an operation nor a view costs its kernel, or a copy
    where there is none (then ``rests_on`` has ``assumed``).

    Args:
        table: Times taken on the device.
        device: For the legal form of a plan.
        kernels: Names the cases.
        kind: ``measured``, unless the table was taken for another purpose than this device.
    """

    def __init__(
        self,
        table: LatencyTable,
        device: Device,
        kernels: Kernels,
        *,
        kind: Literal["measured", "predicted"] = "measured",
    ) -> None:
        self.table = table
        self.device = device
        self.kernels = kernels
        self.kind = kind
        self._known: _Known | None = None

    def latency(self, graph: ModelGraph, plan: Mapping[str, LayerQuantConfig]) -> LatencyEstimate:
        """Latency of a plan, legalised for the device.

        Raises:
            HardwareError: If an operation has no legal form or no kernel, or the table lacks a time: names it.
        """
        known = self._known_of(graph)
        entries = [self._op_entry(known, op, plan[op.name]) for op in graph.ops]
        per_op = {op.name: entry.median_ms for op, entry in zip(graph.ops, entries, strict=True)}
        spread = sqrt(fsum(entry.iqr_ms**2 for entry in entries) + known.float_variance)
        is_interpolated = known.is_interpolated or any(entry.kind != "measured" for entry in entries)
        rests_on = [Kind.MEASURED, *([Kind.DERIVED] if is_interpolated else []), *known.kinds]
        total = fsum(per_op.values()) + known.float_ms
        return LatencyEstimate(total, spread, self.kind, per_op, 0.0, known.float_ms, tuple(rests_on))

    def _op_entry(self, known: _Known, op: Op, config: LayerQuantConfig) -> Entry:
        entry = known.ops[op.name].get(config)
        if entry is None:
            legal = legalise(op, config, self.device).config
            try:
                entry, *changes = (self.table[case] for *_, case in known.surroundings.cases(op, legal))
            except (KernelError, HardwareError) as error:
                raise HardwareError(f"No latency for '{op.name}' at {legal.label}: {error}") from error
            entry = _changed(entry, changes)
            known.ops[op.name][config] = entry
        return entry

    def _known_of(self, graph: ModelGraph) -> _Known:
        if self._known is None or self._known.graph is not graph:
            surroundings = Surroundings(graph, self.kernels)
            work = float_work(graph, self.kernels, self.device.fused)
            entries = [self.table[case] for case in work.cases]
            self._known = _Known(
                graph,
                surroundings,
                fsum(entry.median_ms for entry in entries),
                fsum(entry.iqr_ms**2 for entry in entries),
                any(entry.kind != "measured" for entry in entries),
                (Kind.ASSUMED,) if work.by_copy else (),
                {op.name: {} for op in graph.ops},
            )
        return self._known


@dataclass(frozen=True, slots=True)
class _Known:
    """What has been looked up for one graph."""

    graph: ModelGraph
    surroundings: Surroundings
    float_ms: float
    float_variance: float
    is_interpolated: bool
    kinds: tuple[Kind, ...]
    ops: dict[str, dict[LayerQuantConfig, Entry]]


def kernel_activations(graph: ModelGraph, kernels: Kernels) -> dict[str, str]:
    """Activation functions that kernels apply while storing: by the node of the operation, the name of the kernel."""
    names: dict[str, str] = {}
    matmuls = {op.node for op in graph.ops if op.kind is OpKind.MATMUL}
    for name, op_node in TensorTable(graph).fused.items():
        if op_node in matmuls:
            continue
        try:
            names[op_node] = kernels.float_case(graph.node[name].kind, 1).op
        except KernelError:
            continue
    return names


def _changed(entry: Entry, changes: Sequence[Entry]) -> Entry:
    """The time with pairs of what a neighbour executes and what it is taken to; measured only if all of them are."""
    if not changes:
        return entry
    median = entry.median_ms + fsum(real.median_ms for real in changes[::2]) - fsum(e.median_ms for e in changes[1::2])
    together = (entry, *changes)
    is_timed = all(each.kind == "measured" for each in together)
    spread = sqrt(fsum(each.iqr_ms**2 for each in together))
    return Entry(median, spread, "measured" if is_timed else "interpolated")


class Surroundings:
    """The kernels that operations are executed by together with what follows them, comes before, or reads their codes.

    Args:
        graph: The model.
        kernels: Names the cases.
    """

    def __init__(self, graph: ModelGraph, kernels: Kernels) -> None:
        self._kernels = kernels
        self._names = {node: f"{{}}+{activation}" for node, activation in kernel_activations(graph, kernels).items()}
        for attention in fused_attentions(graph):
            self._names |= {attention.scores: "{}+softmax", attention.weighted: "softmax+{}"}
        edges = code_edges(graph)
        ops = {op.node: op for op in graph.ops}
        self._readers = edges
        self._sources = {reader.node: ops[writer] for writer, reader in edges.items()}

    def cases(self, op: Op, config: LayerQuantConfig) -> list[tuple[Op, LayerQuantConfig, Case]]:
        """What is executed for an operation; then pairs, what its neighbour executes and what that is taken to execute.

        Writers are taken to give even codes, and readers to take codes: an operation that reads real values or uneven
        codes changes its writer, one that cannot give codes changes its reader. Neighbours have 8 bits for that.

        Raises:
            KernelError: If there is no kernel for it.
        """
        source, reader = self._sources.get(op.node), self._readers.get(op.node)
        reads = source is not None and reads_codes(config)
        writes = reader is not None and writes_codes(op, config)
        found = [(op, config, self._case(op, config, ("-u8in" if reads else "") + ("-u8out" if writes else "")))]
        usual = LayerQuantConfig()
        is_uneven = config.activation_scheme in UNEVEN_ACTIVATIONS
        if source is not None and (is_uneven or not reads):
            for ends in ("-lloydout" if reads else "", "-u8out"):
                found.append((source, usual, self._case(source, usual, ends)))
        if reader is not None and not writes:
            for ends in ("", "-u8in"):
                found.append((reader, usual, self._case(reader, usual, ends)))
        return found

    def _case(self, op: Op, config: LayerQuantConfig, ends: str) -> Case:
        case = self._kernels.case_of(op, config)
        name = self._names.get(op.node, "{}").format(case.op)
        return self._kernels.KernelCase(name, case.shape, case.precision + ends)


def float_work(graph: ModelGraph, kernels: Kernels, fused: Collection[str]) -> FloatWork:
    """The cases of everything that is neither an operation, nor a view, nor fused into the kernel before it."""
    own = {op.node for op in graph.ops} | fused_nodes(graph, tuple(fused))
    applied = kernel_activations(graph, kernels)
    tensors = TensorTable(graph)
    own |= {name for name, op_node in tensors.fused.items() if op_node in applied}
    own |= {name for name in tensors.gains if graph.node[name].inputs[0] in own}
    own |= {name for attention in fused_attentions(graph) for name in attention.between}
    cases: list[Case] = []
    by_copy: list[str] = []
    for node in graph.nodes:
        if node.name in own or node.is_view or node.kind == "input" or node.elements == 0:
            continue
        try:
            cases.append(_float_case(graph, node, kernels))
        except KernelError:
            by_copy.append(node.kind)
            cases.append(kernels.float_case("copy", max(_read_elements(graph, node), node.elements)))
    return FloatWork(tuple(cases), tuple(dict.fromkeys(by_copy)))


def reachable_cases(
    graph: ModelGraph, choices: Mapping[str, Iterable[LayerQuantConfig]], device: Device, kernels: Kernels
) -> Sequence[Case]:
    """Every distinct case that the plans of a space can execute on a device, those of floating point included.

    Args:
        graph: The model.
        choices: For each operation, the configurations that it may have.
        device: Gives the legal forms.
        kernels: Names the cases.

    Raises:
        HardwareError: If a configuration has no legal form or no kernel.
    """
    found = dict.fromkeys(case for _, _, case in op_cases(graph, choices, device, kernels))
    return (*found, *dict.fromkeys(float_work(graph, kernels, device.fused).cases))


def op_cases(
    graph: ModelGraph, choices: Mapping[str, Iterable[LayerQuantConfig]], device: Device, kernels: Kernels
) -> Iterator[tuple[Op, LayerQuantConfig, Case]]:
    """Each operation in each of its legal forms, and the case that is executed.

    Raises:
        HardwareError: If a configuration has no legal form or no kernel.
    """
    surroundings = Surroundings(graph, kernels)
    for op in graph.ops:
        for config in choices[op.name]:
            legal = legalise(op, config, device).config
            try:
                cases = surroundings.cases(op, legal)
            except KernelError as error:
                raise HardwareError(f"No kernel for '{op.name}' at {legal.label}: {error}") from error
            for each, found, case in cases:
                yield each, legalise(each, found, device).config, case


def _float_case(graph: ModelGraph, node: Node, kernels: Kernels) -> Case:
    kind = _SAME_WORK.get(node.kind, node.kind)
    if kind in _MEANS:
        read = _read_elements(graph, node)
        return kernels.float_case(kind, read, columns=node.elements if read % node.elements == 0 else read)
    if kind in _ROWS_OF_LAST_AXIS:
        return kernels.float_case(kind, node.elements, columns=node.shape[-1])
    if kind == "group_norm":
        return kernels.float_case(kind, node.elements, columns=node.shape[1])
    return kernels.float_case(kind, node.elements)


def _read_elements(graph: ModelGraph, node: Node) -> int:
    return max((graph.node[name].elements for name in node.inputs), default=node.elements)
