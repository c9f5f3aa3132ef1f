"""How much each group of a network suffers from few bits: one group at a time is quantized, all others stay float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evoquant.evaluate.accuracy import AccuracyEvaluator
from evoquant.evaluate.metrics import compare_logits
from evoquant.space import uniform_plan
from evoquant.types import FLOAT_BITS, Group, ModelGraph

PROBE_BITS = (4, 4)


@dataclass(frozen=True, slots=True)
class GroupSensitivity:
    """One probe.

    Attributes:
        group: Name of the group.
        ops: Its operations.
        role: Role of the first of them.
        block: The block that it is in.
        block_kind: Kind of that block.
        kl: Mean KL divergence, in nats, with this group alone at the probe's precision.
        share: ``kl`` as a share of the largest one.
    """

    group: str
    ops: tuple[str, ...]
    role: str
    block: str
    block_kind: str
    kl: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "group": self.group,
            "ops": list(self.ops),
            "role": self.role,
            "block": self.block,
            "block_kind": self.block_kind,
            "kl": self.kl,
            "share": self.share,
        }


def analyze_sensitivity(
    evaluator: AccuracyEvaluator,
    graph: ModelGraph,
    *,
    bits: tuple[int, int] = PROBE_BITS,
    groups: Sequence[str] | None = None,
    split: str = "selection",
    on_group: Callable[[GroupSensitivity], None] | None = None,
) -> list[GroupSensitivity]:
    """Probe groups one at a time, most sensitive first.

    Args:
        evaluator: Judges plans.
        graph: The model.
        bits: Weight and activation bits of the probed group.
        groups: Names of the groups to probe; None probes all.
        split: Images to probe with.
        on_group: Called with each probe when all are finished; its ``share`` is not known yet and 0.

    Raises:
        ModelError: If a probe gives an output that is not finite.
    """
    chosen = [group for group in graph.groups if groups is None or group.name in groups]
    images = evaluator.images(split)
    logits = _probed_logits(evaluator, graph, chosen, bits, images.batches)
    found = []
    for group in chosen:
        kl = compare_logits(torch.cat(logits.pop(group.name)), images.reference, images.labels).kl
        found.append(_described(group, graph, kl, 0.0))
        if on_group is not None:
            on_group(found[-1])
    largest = max((entry.kl for entry in found), default=0.0) or 1.0
    ranked = sorted(found, key=lambda entry: (-entry.kl, entry.group))
    return [_described(graph.group[entry.group], graph, entry.kl, entry.kl / largest) for entry in ranked]


def _probed_logits(
    evaluator: AccuracyEvaluator,
    graph: ModelGraph,
    groups: Sequence[Group],
    bits: tuple[int, int],
    batches: Sequence[Tensor],
) -> dict[str, list[Tensor]]:
    """Logits of each probe, batch by batch; what lies in front of a group is computed once for each batch."""
    model = evaluator.copy_of_model()
    float_plan, probe = uniform_plan(graph, FLOAT_BITS, FLOAT_BITS), uniform_plan(graph, *bits, edge_bits=0)
    cuts = {group.name: model.cut(group.ops) for group in groups}
    logits: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    for batch in batches:
        sweep = model.sweep(batch)
        for group in sorted(groups, key=lambda group: cuts[group.name]):
            model.apply(float_plan)
            sweep.advance(cuts[group.name])
            model.apply({**float_plan, **{name: probe[name] for name in group.ops}})
            logits[group.name].append(sweep.finish())
    return logits


def _described(group: Group, graph: ModelGraph, kl: float, share: float) -> GroupSensitivity:
    first = graph.op[group.ops[0]]
    return GroupSensitivity(group.name, group.ops, first.role.value, first.block, first.block_kind, kl, share)
