"""The result of a search: the Pareto front, what it is compared with, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from evoquant.errors import ConfigurationError
from evoquant.types.precision import LayerQuantConfig

FRONT_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class TestedAccuracy:
    """Accuracy on the test images.

    Attributes:
        top1: In percent.
        ci95: Its 95 % Wilson interval, in percent.
        images: Number of images.
        drop_pp: Drop against the floating-point model on the same images, in percentage points; of several
            architectures against that of the reference.
        drop_stderr_pp: Standard error of that paired difference.
        kl: Mean KL divergence of the class probabilities from the floating-point model's, in nats; of several
            architectures with the offset of the point's on the test images.
    """

    top1: float
    ci95: tuple[float, float]
    images: int
    drop_pp: float
    drop_stderr_pp: float
    kl: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "top1": self.top1,
            "ci95": list(self.ci95),
            "images": self.images,
            "drop_pp": self.drop_pp,
            "drop_stderr_pp": self.drop_stderr_pp,
            "kl": self.kl,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls(**{**data, "ci95": tuple(data["ci95"])})


@dataclass(frozen=True, slots=True)
class FloatAccuracy:
    """Accuracy of the floating-point model of one of several architectures, on one image set.

    Attributes:
        images: Number of images.
        top1: In percent.
        cross_entropy: Mean cross-entropy with the labels, in nats.
        offset: By how much that exceeds the cross-entropy of the reference architecture, in nats.
        offset_stderr: Standard error of that paired difference, in nats.
    """

    images: int
    top1: float
    cross_entropy: float
    offset: float
    offset_stderr: float


@dataclass(frozen=True, slots=True)
class FrontArchitecture:
    """One of the architectures that share a front.

    Attributes:
        name: What the experiment calls it.
        model: Name of its model.
        image_size: Height and width of its input.
        evaluations: Candidates of it that were evaluated.
        selection: Its floating-point model on the selection images; ``offset`` is part of ``kl`` of its points. The
            reference is the architecture whose offset is 0.
        test: The same on the test images, with the same reference.
    """

    name: str
    model: str
    image_size: int
    evaluations: int
    selection: FloatAccuracy
    test: FloatAccuracy | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        test = None if data["test"] is None else FloatAccuracy(**data["test"])
        return cls(**{**data, "selection": FloatAccuracy(**data["selection"]), "test": test})


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """One plan with what it costs.

    Attributes:
        id: ``p01``, ``p02``, ... along the front, from the smallest divergence; a baseline's id is its name, with that
            of its architecture in front of it (``small.w8a8``) unless it is the reference.
        name: What a reader calls it, such as ``W4.6A7.9``, ``w8a8``, or ``small W4.6A7.9`` of an architecture.
        objectives: Every figure by name: those that were minimised, and those that are stated beside them.
        plan: Precision of every operation.
        test: Accuracy on the test images; None if it was not measured.
        architecture: Whose plan it is, where several architectures share the front.
    """

    id: str
    name: str
    objectives: Mapping[str, float]
    plan: Mapping[str, LayerQuantConfig]
    test: TestedAccuracy | None = None
    architecture: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``architecture`` only if there is one."""
        return {
            "id": self.id,
            "name": self.name,
            **({} if self.architecture is None else {"architecture": self.architecture}),
            "objectives": dict(self.objectives),
            "test": None if self.test is None else self.test.to_dict(),
            "plan": {name: config.to_dict() for name, config in self.plan.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls(
            id=data["id"],
            name=data["name"],
            objectives=dict(data["objectives"]),
            plan={name: LayerQuantConfig.from_dict(config) for name, config in data["plan"].items()},
            test=None if data["test"] is None else TestedAccuracy.from_dict(data["test"]),
            architecture=data.get("architecture"),
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """What another way to spend evaluations achieves, on the scale of the front's hypervolume.

    Attributes:
        name: ``presets``, ``seeds``, ``milp``, ``greedy``, ``random`` or ``nsga2``; ``NAME alone`` is one of several
            architectures with the evaluations that it got.
        hypervolume: Of the front that it finds.
        evaluations: Candidates that it evaluated.
        images: Forward passes of one image that it made.
    """

    name: str
    hypervolume: float
    evaluations: int
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "hypervolume": self.hypervolume,
            "evaluations": self.evaluations,
            "images": self.images,
        }


@dataclass(frozen=True, slots=True)
class FrontDocument:
    """Everything that a finished, interrupted or infeasible search has to say.

    Attributes:
        model: Name of the model.
        device: Name of the device whose costs these are.
        status: ``done``, ``interrupted`` or ``infeasible``.
        objectives: Names of the minimised objectives; the front is not dominated in these.
        front: Its members, by increasing first objective. Of an infeasible run, the best point found.
        baselines: Uniform and published plans, judged in the same way.
        knee: Id of the knee, None if the front is empty.
        hypervolume: Of the front, as a share of the box between ideal and reference point.
        reference_point: Upper corner of that box, by objective; empty before the first generation.
        hypervolume_history: (evaluations, hypervolume) after every generation.
        hypervolume_images: Forward passes of one image until then, of sensitivities too; empty in earlier files.
        hypervolume_seconds: Time that evaluations took until then, the sum over workers; likewise.
        evaluated: The objectives of every candidate that was evaluated on all images, dominated ones included, in order
            of evaluation.
        evaluations: Number of evaluated candidates, failed and stopped ones included; of a run for several devices
            those that this one executes.
        failures: Number of failed ones.
        images_evaluated: Forward passes of one image that the baselines, the probes of sensitivity and the search made,
            for all devices of the run together.
        seconds: Time the search took, that of earlier sessions of this run included.
        verdict: What the search gained over the best baseline, in one sentence.
        provenance: Versions, machine, hashes, seed, command.
        comparisons: What the baselines reach: free ones in every run, others where they were asked for.
        other_targets: Fronts of the other devices of the run; not part of ``to_dict``, they have files of their own.
        stopped: Number of those that were dominated with confidence after some of the images and did not get the rest.
        architectures: The architectures that share the front; none: there is only ``model``.
    """

    model: str
    device: str
    status: str
    objectives: tuple[str, ...]
    front: tuple[ParetoPoint, ...]
    baselines: tuple[ParetoPoint, ...]
    knee: str | None
    hypervolume: float
    reference_point: Mapping[str, float]
    hypervolume_history: tuple[tuple[int, float], ...]
    hypervolume_images: tuple[int, ...]
    hypervolume_seconds: tuple[float, ...]
    evaluated: tuple[Mapping[str, float], ...]
    evaluations: int
    failures: int
    images_evaluated: int
    seconds: float
    verdict: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    other_targets: tuple[FrontDocument, ...] = ()
    stopped: int = 0
    architectures: tuple[FrontArchitecture, ...] = ()

    def point(self, name: str) -> ParetoPoint:
        """A member of the front or a baseline by its id; ``knee`` is the knee.

        Raises:
            ConfigurationError: If there is none of that id.
        """
        wanted = self.knee if name == "knee" else name
        for point in (*self.front, *self.baselines):
            if point.id == wanted:
                return point
        available = ", ".join(["knee", *(point.id for point in (*self.front, *self.baselines))])
        raise ConfigurationError(f"The front has no point '{name}'. Available: {available}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the version of this format; ``architectures`` only if there are any."""
        architectures = [each.to_dict() for each in self.architectures]
        return {
            "schema_version": FRONT_SCHEMA_VERSION,
            "model": self.model,
            **({"architectures": architectures} if architectures else {}),
            "device": self.device,
            "status": self.status,
            "seconds": self.seconds,
            "evaluations": self.evaluations,
            "failures": self.failures,
            "stopped": self.stopped,
            "images_evaluated": self.images_evaluated,
            "objectives": list(self.objectives),
            "hypervolume": self.hypervolume,
            "reference_point": dict(self.reference_point),
            "knee": self.knee,
            "verdict": self.verdict,
            "front": [point.to_dict() for point in self.front],
            "baselines": [point.to_dict() for point in self.baselines],
            "hypervolume_history": [list(entry) for entry in self.hypervolume_history],
            "hypervolume_images": list(self.hypervolume_images),
            "hypervolume_seconds": list(self.hypervolume_seconds),
            "evaluated": [dict(values) for values in self.evaluated],
            "provenance": dict(self.provenance),
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``.

        Raises:
            ConfigurationError: If the document has another version.
        """
        version = data.get("schema_version")
        if version != FRONT_SCHEMA_VERSION:
            raise ConfigurationError(f"Expected a front of schema_version {FRONT_SCHEMA_VERSION}, but got {version}.")
        return cls(
            **{
                **{name: value for name, value in data.items() if name != "schema_version"},
                "objectives": tuple(data["objectives"]),
                "front": tuple(ParetoPoint.from_dict(point) for point in data["front"]),
                "baselines": tuple(ParetoPoint.from_dict(point) for point in data["baselines"]),
                "hypervolume_images": tuple(map(int, data.get("hypervolume_images", ()))),
                "hypervolume_seconds": tuple(map(float, data.get("hypervolume_seconds", ()))),
                "hypervolume_history": tuple(
                    (int(count), float(value)) for count, value in data["hypervolume_history"]
                ),
                "evaluated": tuple(dict(values) for values in data["evaluated"]),
                "comparisons": tuple(Comparison(**entry) for entry in data.get("comparisons", ())),
                "architectures": tuple(FrontArchitecture.from_dict(entry) for entry in data.get("architectures", ())),
            }
        )
