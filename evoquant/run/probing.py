"""One table of sensitivities for all devices of a run."""

from __future__ import annotations

from collections.abc import Sequence

from evoquant.config import Experiment
from evoquant.evaluate import ProbeTable
from evoquant.run.space import build_space
from evoquant.run.targets import Target
from evoquant.space import SearchSpace


def probe_space(experiment: Experiment, targets: Sequence[Target]) -> SearchSpace:
    """The choices to probe: those of the device, or with several devices those of the space without any."""
    if len(targets) == 1:
        return targets[0].space
    return build_space(experiment, targets[0].space.graph, None)


def translated(table: ProbeTable, probed: SearchSpace, space: SearchSpace) -> ProbeTable:
    """The sensitivities of one space from those of another one: each choice has that of the choice most like it."""
    if probed is space:
        return table
    errors = []
    for known, values, own in zip(probed.tables, table.errors, space.tables, strict=True):
        at = {row: index for index, row in enumerate(known.configs)}
        errors.append(tuple(values[at[known.nearest(configs)]] for configs in own.configs.values()))
    return ProbeTable(table.groups, tuple(errors), table.probes, table.images, table.passes)
