"""What else the evaluations of a run could have been spent on, and what that reaches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from evoquant.config import Experiment
from evoquant.run.evaluations import Evaluations
from evoquant.run.exploration import Exploration, Judged
from evoquant.run.objectives import vector, violations
from evoquant.run.searchers import SearcherFactory
from evoquant.search import ReferencePoint
from evoquant.types.front import Comparison


def known_comparison(
    name: str,
    phenotypes: Iterable[str],
    *,
    values: Mapping[str, Mapping[str, float]],
    experiment: Experiment,
    reference: ReferencePoint,
    images: int,
    other_images: int = 0,
) -> Comparison:
    """A comparison with plans that were evaluated anyway.

    Args:
        name: Its name.
        phenotypes: The plans; those that were not evaluated, or failed, are left out.
        values: Figures of all plans.
        experiment: Objectives and limits.
        reference: Scale of the hypervolume.
        images: Images of one evaluation.
        other_images: Forward passes that it took to find the plans.
    """
    limits = experiment.constraints.limits
    found = [values[key] for key in dict.fromkeys(phenotypes) if key in values]
    feasible: Sequence[tuple[float, ...]] = [
        vector(entry, experiment.objectives)
        for entry in found
        if all(excess <= 0.0 for excess in violations(entry, limits))
    ]
    hypervolume = reference.hypervolume(feasible) if feasible else 0.0
    return Comparison(name, hypervolume, len(found), len(found) * images + other_images)


async def run_comparison(
    name: str,
    factory: SearcherFactory,
    *,
    evaluations: Evaluations,
    judged: Judged,
    reference: ReferencePoint,
    images: int,
    spent: int,
) -> Comparison:
    """Let another search spend what the search of the run has spent.

    Args:
        name: The search.
        factory: Makes it.
        evaluations: Evaluates plans.
        judged: Figures of all plans.
        reference: Scale of the hypervolume.
        images: Images of one evaluation.
        spent: Forward passes of the search of the run, its probes of sensitivity included.
    """
    uses_probes = name == "milp" and factory.probes is not None
    probes = round(factory.probes.passes) if uses_probes and factory.probes is not None else 0
    other = Exploration(factory.experiment, factory.space, evaluations, judged, reference=reference)
    await other.run(factory.baseline(name, max(1, (spent - probes) // images)))
    return Comparison(name, other.archive.hypervolume, other.archive.evaluations, other.images + probes)
