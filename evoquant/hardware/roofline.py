"""Latency from a device file: the larger of the time to multiply and the time to move, and a launch.

    t = max((MAC + results · MAC per result) / (peak(executed type) · utilisation(class)), bytes / bandwidth)
        + t_operation

References:
    S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore
    architectures", Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from evoquant.hardware.attention import fused_attentions
from evoquant.hardware.conversions import Conversion, conversions
from evoquant.hardware.device import Device, NativeType
from evoquant.hardware.latency import LatencyEstimate
from evoquant.hardware.legality import Legal, legalise
from evoquant.hardware.provenance import Kind, kinds_of
from evoquant.hardware.tensors import TensorTable
from evoquant.hardware.work import SPECIAL_FUNCTIONS, WorkClass, elements, read_elements, stored_bytes, work_class
from evoquant.types.graph import ModelGraph, Node, Op, OpKind
from evoquant.types.precision import FLOAT_BITS, LayerQuantConfig
from evoquant.types.storage import weight_bytes

_MS_PER_US = 1e-3
_MS_PER_S = 1e3
_GIGA = 1e9


@dataclass(frozen=True, slots=True)
class _Known:
    """What has been computed for one graph: time and legal form of each operation by its configuration."""

    tensors: TensorTable
    float_ops_ms: float
    ops: dict[str, dict[LayerQuantConfig, tuple[float, LayerQuantConfig]]]


class Roofline:
    """Predicts the latency of a plan on a device.

    An operation reads its input and its weights as stored and writes its result at the width of its own input. Its
    weights come from DRAM; its activations from the cache if they fit there together, else from DRAM. On a device whose
    ``weights_from`` is ``cache``, all of them come from the cache if they fit there together. Where kernels read and
    write floating point, each holds its weights decoded to whole bytes, quantizes its input and scales its result in
    passes of their own, and applies a function to its result while storing it. Elementwise work costs its bytes, or its
    arithmetic if that is a special function.

    Args:
        device: The device.
        threads: Cores that work together; None for all of the device.
    """

    def __init__(self, device: Device, *, threads: int | None = None) -> None:
        self.device = device
        self.threads = threads
        self._share = 1.0 if threads is None else threads / device.cores_count.value
        self._result_macs = 0.0 if device.overhead.result_macs is None else device.overhead.result_macs.value
        self._known: _Known | None = None

    def latency(self, graph: ModelGraph, plan: Mapping[str, LayerQuantConfig]) -> LatencyEstimate:
        """Predicted latency of a plan, legalised for the device.

        Raises:
            HardwareError: If an operation has no legal form on the device.
        """
        known = self._known_of(graph)
        per_op: dict[str, float] = {}
        configs: list[LayerQuantConfig] = []
        for op in graph.ops:
            config = plan[op.name]
            found = known.ops[op.name].get(config)
            if found is None:
                legal = legalise(op, config, self.device)
                found = known.ops[op.name][config] = (self.op_ms(op, legal), legal.config)
            per_op[op.name] = found[0]
            configs.append(found[1])
        return self.total(per_op, known.tensors, configs, known.float_ops_ms)

    def total(
        self,
        per_op: Mapping[str, float],
        tensors: TensorTable,
        configs: Sequence[LayerQuantConfig],
        float_ops_ms: float,
    ) -> LatencyEstimate:
        """Add the conversions of a plan, and what is paid once, to the times of its operations."""
        conversions_ms = 0.0
        if self.device.activations == "codes":
            conversions_ms = fsum(self.conversion_ms(conversion) for conversion in conversions(tensors, configs))
        once = self.device.overhead.inference_us.value * _MS_PER_US
        total = fsum(per_op.values()) + conversions_ms + float_ops_ms + once
        return LatencyEstimate(total, 0.0, "predicted", per_op, conversions_ms, float_ops_ms, self.rests_on)

    def op_ms(self, op: Op, legal: Legal) -> float:
        """Time of one operation as the device executes it."""
        work, config, device = work_class(op), legal.config, self.device
        rate = legal.executed.peak_gmacs_per_s * device.utilisation(legal.executed, work).value * self._share
        compute_s = (op.macs + elements(op.output_shape) * self._result_macs) / (rate * _GIGA)
        width = device.float_bytes
        if device.activations == "codes":
            width = stored_bytes(config.activation_bits, device.float_bytes)
        moved_s = self._moved_s((read_elements(op) + elements(op.output_shape)) * width, self._weight_bytes(op, config))
        inside_s = 0.0
        if device.activations == "float" and config.activation_bits < FLOAT_BITS:
            inside_s = self._convert_s(read_elements(op) + elements(op.output_shape), legal.executed)
        return (max(compute_s, moved_s) + inside_s) * _MS_PER_S + device.overhead.operation_us.value * _MS_PER_US

    def float_ops_ms(self, tensors: TensorTable) -> float:
        """Time of everything that is neither an operation, nor a view, nor fused into an operation."""
        graph = tensors.graph
        own = {op.node for op in graph.ops}
        fused = fused_nodes(graph, self.device.fused)
        applied = self._applied(tensors)
        return fsum(
            self._applied_ms(node) if node.name in applied else self._node_ms(graph, node)
            for node in graph.nodes
            if node.name not in own and node.name not in fused and not node.is_view and node.kind != "input"
        )

    def conversion_ms(self, conversion: Conversion) -> float:
        """Time to read a tensor in floating point and write its codes."""
        size = conversion.elements * (self.device.float_bytes + stored_bytes(conversion.bits))
        return self._moved_s(size, 0) * _MS_PER_S + self.device.overhead.operation_us.value * _MS_PER_US

    @property
    def rests_on(self) -> tuple[Kind, ...]:
        """Kinds of the figures that every prediction uses."""
        device = self.device
        figures = [*device.peak_gmacs_per_s.values(), *device.utilisation_fraction.values()]
        for part in (device.memory, device.overhead):
            figures += [figure for name in type(part).model_fields if (figure := getattr(part, name)) is not None]
        return kinds_of(figures)

    def _known_of(self, graph: ModelGraph) -> _Known:
        if self._known is None or self._known.tensors.graph is not graph:
            tensors = TensorTable(graph)
            self._known = _Known(tensors, self.float_ops_ms(tensors), {op.name: {} for op in graph.ops})
        return self._known

    def _moved_s(self, activation_bytes: float, weights: float) -> float:
        memory = self.device.memory
        warm = weights if self.device.weights_from == "cache" else 0.0
        in_cache = activation_bytes + warm <= memory.cache_bytes.value
        bandwidth = memory.cache_gb_per_s.value if in_cache else memory.dram_gb_per_s.value
        if warm:
            return (activation_bytes + warm) / (bandwidth * _GIGA)
        return activation_bytes / (bandwidth * _GIGA) + weights / (memory.dram_gb_per_s.value * _GIGA)

    def _weight_bytes(self, op: Op, config: LayerQuantConfig) -> float:
        if config.weight_bits == FLOAT_BITS or self.device.activations == "float":
            return op.weight_count * stored_bytes(config.weight_bits, self.device.float_bytes)
        return weight_bytes(op, config)

    def _convert_s(self, values: int, native: NativeType) -> float:
        rate = native.peak_gmacs_per_s * self.device.utilisation(native, WorkClass.ELEMENTWISE).value * self._share
        return values / (rate * _GIGA)

    def _applied(self, tensors: TensorTable) -> set[str]:
        """Functions that kernels of floating-point results apply while storing: that takes arithmetic alone."""
        if self.device.activations == "codes":
            return set()
        matmuls = {op.node for op in tensors.graph.ops if op.kind is OpKind.MATMUL}
        inside = {name for attention in fused_attentions(tensors.graph) for name in attention.between}
        return inside | set(tensors.gains) | {name for name, op_node in tensors.fused.items() if op_node not in matmuls}

    def _applied_ms(self, node: Node) -> float:
        return node.elements / (self._float_rate() * _GIGA) * _MS_PER_S

    def _float_rate(self) -> float:
        """Values of elementwise work in floating point, 10⁹ per second."""
        native = self.device.types[self.device.float_type]
        share = self.device.utilisation(native, WorkClass.ELEMENTWISE).value
        return native.peak_gmacs_per_s * share * self._share

    def _node_ms(self, graph: ModelGraph, node: Node) -> float:
        device = self.device
        read = sum(graph.node[name].elements for name in node.inputs)
        moved_s = self._moved_s((read + node.elements) * device.float_bytes, 0)
        compute_s = node.elements / (self._float_rate() * _GIGA) if node.kind in SPECIAL_FUNCTIONS else 0.0
        return max(compute_s, moved_s) * _MS_PER_S + device.overhead.operation_us.value * _MS_PER_US


def fused_nodes(graph: ModelGraph, kinds: Sequence[str]) -> set[str]:
    """Nodes that a kernel applies while storing: of the given kinds, alone on the result of an operation or of such."""
    readers = Counter(name for node in graph.nodes for name in set(node.inputs))
    in_kernel = {op.node for op in graph.ops}
    fused: set[str] = set()
    for node in graph.nodes:
        if node.kind in kinds and any(name in in_kernel and readers[name] == 1 for name in node.inputs):
            in_kernel.add(node.name)
            fused.add(node.name)
    return fused
