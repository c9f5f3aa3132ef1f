"""How much each group of a network suffers from few bits: one group at a time is quantized, all others stay float.

Two metrics say it: the divergence of a probe, and the Fisher form of the floating-point model, which costs a few
backward passes for all groups and choices together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from evoquant.evaluate.accuracy import AccuracyEvaluator
from evoquant.evaluate.fisher_table import fisher_choices, fisher_errors
from evoquant.evaluate.metrics import compare_logits
from evoquant.evaluate.probes import probe_choices
from evoquant.evaluate.sides import sides_of
from evoquant.space import uniform_plan
from evoquant.types import FLOAT_BITS, Group, ModelGraph

PROBE_BITS = (4, 4)

SENSITIVITY_TABLES = {"fisher": fisher_choices, "kl": probe_choices}
"""What judges every choice of a space, by the name of its metric."""


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
        fisher: The same to second order, in nats, by the Fisher form.
        share: ``kl`` as a share of the largest one.
    """

    group: str
    ops: tuple[str, ...]
    role: str
    block: str
    block_kind: str
    kl: float
    fisher: float
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
            "fisher": self.fisher,
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
    probe = uniform_plan(graph, *bits, edge_bits=0)
    sides = [sides_of(graph, [{name: probe[name] for name in group.ops}]) for group in chosen]
    fisher = fisher_errors(evaluator, graph, sides, images=len(images.labels), split=split)
    found = []
    for group, (second_order,) in zip(chosen, fisher, strict=True):
        kl = compare_logits(torch.cat(logits.pop(group.name)), images.reference, images.labels).kl
        found.append(_described(group, graph, kl, second_order))
        if on_group is not None:
            on_group(found[-1])
    largest = max((entry.kl for entry in found), default=0.0) or 1.0
    ranked = sorted(found, key=lambda entry: (-entry.kl, entry.group))
    return [replace(entry, share=entry.kl / largest) for entry in ranked]


def metric_correlation(entries: Sequence[GroupSensitivity]) -> float:
    """Spearman correlation of the two metrics over the groups; nan with fewer than two."""
    return float(spearmanr([entry.kl for entry in entries], [entry.fisher for entry in entries]).statistic)


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


def _described(group: Group, graph: ModelGraph, kl: float, fisher: float) -> GroupSensitivity:
    first = graph.op[group.ops[0]]
    return GroupSensitivity(group.name, group.ops, first.role.value, first.block, first.block_kind, kl, fisher, 0.0)
