"""What a run tells its listener. The library prints nothing; a command line or a notebook draws these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evoquant.types.front import ParetoPoint


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins.

    ``architecture`` (of several, the one that is prepared), ``model``, ``calibration``, ``latency``, ``baselines``,
    ``sensitivity``, ``search``, ``comparison`` or ``test``.
    """

    stage: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Promised:
    """What the run will take, from the time of the baselines; said before the search starts.

    Attributes:
        evaluations: Candidates to evaluate, those of compared searches included.
        seconds_per_evaluation: Median time of one baseline on the selection images.
        seconds: Time of all evaluations, so many of them at a time as the run allows.
        disk_mb: What the journal will hold.
        memory_mb: Memory of all processes, from what this one has held so far.
    """

    evaluations: int
    seconds_per_evaluation: float
    seconds: float
    disk_mb: float
    memory_mb: float


@dataclass(frozen=True, slots=True)
class SensitivityProbed:
    """The choices of all groups were probed.

    Attributes:
        probes: Number of probes.
        images: Images of each.
        cost_ratio: Their cost as a share of the same probes run from the input.
        from_journal: Whether an earlier session did it.
    """

    probes: int
    images: int
    cost_ratio: float
    from_journal: bool


@dataclass(frozen=True, slots=True)
class SearchStarted:
    """The search is about to evaluate its first candidate.

    Attributes:
        groups: Number of groups that have a gene.
        space_size_log10: Decimal logarithm of the number of distinct plans.
        evaluations: The most evaluations that it will make, None if only time limits it.
        resumed_evaluations: Evaluations that an earlier session of this run left in the journal.
    """

    groups: int
    space_size_log10: float
    evaluations: int | None
    resumed_evaluations: int


@dataclass(frozen=True, slots=True)
class CandidateEvaluated:
    """One candidate has its objectives.

    Attributes:
        number: Count of candidates so far, this one included.
        phenotype: Hash of its plan.
        objectives: By name; empty if it failed.
        reason: Why it failed, else None.
        seconds: Time the evaluation took.
        from_journal: Whether it was answered from the journal.
    """

    number: int
    phenotype: str
    objectives: Mapping[str, float]
    reason: str | None
    seconds: float
    from_journal: bool


@dataclass(frozen=True, slots=True)
class GenerationFinished:
    """A generation was told to the search and the front on disk is up to date.

    Attributes:
        generation: Counted from 1.
        evaluations: Candidates evaluated so far.
        front_size: Members of the front.
        hypervolume: Of the front, in [0, 1] of the box between the ideal and the reference point.
        eta_seconds: Estimated time to the end of the budget, None if unknown.
        front: The members of the front.
        rank_correlation: Of predicted and evaluated error over the last candidates; None where nothing is predicted.
        device: Whose front it is, where the run has several; else empty.
        architecture: Whose candidates they were, where several share the front; else empty.
    """

    generation: int
    evaluations: int
    front_size: int
    hypervolume: float
    eta_seconds: float | None
    front: tuple[ParetoPoint, ...]
    rank_correlation: float | None = None
    device: str = ""
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class Tested:
    """One member of the front, or a baseline, was judged on the test images."""

    id: str
    top1: float
    images: int


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something that the user should know and that does not stop the run."""

    message: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run ended; its results are in the folder.

    Attributes:
        status: ``done``, ``interrupted`` or ``infeasible``.
        seconds: Wall time of this session.
    """

    status: str
    seconds: float


Event = (
    StageStarted
    | Promised
    | SensitivityProbed
    | SearchStarted
    | CandidateEvaluated
    | GenerationFinished
    | Tested
    | Noticed
    | RunFinished
)
Listener = Callable[[Event], None]
