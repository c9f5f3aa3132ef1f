"""The shape of an experiment file: model, images, device, space, objectives, search.

All values are validated when the file is read; relative paths count from the folder of the file. ``output.dir`` alone
counts from the current folder, as a command's output does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from evoquant.config.model import ArchitectureSpec, FilePath, ModelSpec, Section, resolve
from evoquant.config.preparation import PreparationSpec
from evoquant.config.quantizers import CompensationSpec
from evoquant.errors import ConfigurationError, UnknownNameError

EMBEDDED = "embedded:"
"""Start of the names of image sets that travel with the package, as in ``embedded:calibration``."""

Objective = Literal[
    "kl", "latency_ms", "energy_mj", "memory_mb", "accuracy_drop_pp", "model_size_bytes", "average_bits"
]
Split = Literal["calibration", "selection", "test"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Limit = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


def _resolve_images(images: str, info: ValidationInfo) -> str:
    if images.startswith(EMBEDDED):
        split = images.removeprefix(EMBEDDED)
        if split not in ("calibration", "selection", "test"):
            raise ValueError(f"Expected embedded:calibration, embedded:selection or embedded:test, but got '{images}'")
        return images
    return str(resolve(images, info))


def _one_or_more(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _refuse_repeats(values: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"Each may be listed once, but {', '.join(repeated)} is repeated")
    return values


Images = Annotated[str, Field(min_length=1), AfterValidator(_resolve_images)]
Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_more), Field(min_length=1), AfterValidator(_refuse_repeats)]


class ImageSet(Section):
    """Some of the images of a folder or file, in an order that depends on nothing but their names and the seed.

    Attributes:
        images: A folder (of class subfolders, or flat), an ``.npz`` file, or ``embedded:calibration``, ``:selection``
            or ``:test``.
        labels: CSV file with the columns ``file`` and ``label``; paths in it count from its own folder or from the
            image folder. None: ``labels.csv`` in the image folder, else class subfolders in alphabetical order.
        count: How many images; None: all from ``offset`` on. Fewer images than that are an error.
        offset: How many images of the order to leave out at its start.
        seed: Seed of the permutation that makes the order; None: the order of the file, or of the sorted file names.
    """

    images: Images
    labels: FilePath | None = None
    count: PositiveInt | None = None
    offset: NonNegativeInt = 0
    seed: NonNegativeInt | None = 0


class TransformSpec(Section):
    """How images are prepared. None: as the model was trained, by timm's ``pretrained_cfg``.

    Attributes:
        interpolation: Of the resize.
        crop_pct: Share of the resized short side that the centre crop keeps; 1.0 resizes only.
        mean: Subtracted from each channel, in units of [0, 1].
        std: Divides each channel.
    """

    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    crop_pct: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    mean: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    std: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | None = None


class DataSpec(Section):
    """The three disjoint image sets: statistics come from the first, the search sees the second, the third is reported.

    Attributes:
        calibration: Images that activation ranges are taken from; labels are not used.
        selection: Images that candidates are ranked with.
        test: Images that the final front is reported on.
        transform: How all of them are prepared.
        unreadable: Whether an image that cannot be decoded stops the run, or is skipped and named.
    """

    calibration: ImageSet
    selection: ImageSet
    test: ImageSet
    transform: TransformSpec = TransformSpec()
    unreadable: Literal["refuse", "skip"] = "refuse"


class TargetSpec(Section):
    """The device, and where its latencies come from.

    Attributes:
        device: Names of device files in ``hardware_models``, or paths of your own. Of several devices each gets a front
            of its own; they share the evaluations.
        latency: ``measured`` on this machine's kernels (a device that is not this machine has its roofline instead),
            predicted by the ``roofline`` of the device, or looked up in a ``table``.
        latency_table: The table; with several devices a mapping from a device to its table. A device without one has
            its latencies measured, or its roofline if it is not this machine.
        threads: Threads of the kernels of this machine; a prediction for another device is for all of it.
    """

    device: Names = ("host_cpu",)
    latency: Literal["measured", "roofline", "table"] = "measured"
    latency_table: FilePath | dict[str, FilePath] | None = None
    threads: PositiveInt = 1

    @field_validator("device")
    @classmethod
    def _resolve_files(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return tuple(str(resolve(name, info)) if _is_file_name(name) else name for name in names)

    @field_validator("latency_table")
    @classmethod
    def _resolve_devices(cls, tables: Path | dict[str, Path] | None, info: ValidationInfo) -> object:
        if not isinstance(tables, dict):
            return tables
        return {str(resolve(name, info)) if _is_file_name(name) else name: path for name, path in tables.items()}

    @model_validator(mode="after")
    def _table_is_given(self) -> Self:
        tables = self.latency_table
        if (self.latency == "table") != bool(tables):
            raise ValueError(f"latency_table goes with latency: table, but got {self.latency}, {tables}")
        if isinstance(tables, Path) and len(self.device) > 1:
            raise ValueError(
                f"Several devices need to know whose table it is: latency_table: {{{self.device[0]}: FILE}}"
            )
        unknown = sorted(tables.keys() - set(self.device)) if isinstance(tables, dict) else []
        if unknown:
            raise ValueError(f"latency_table names {', '.join(unknown)}, which device does not list")
        return self

    def table_of(self, device: str) -> Path | None:
        """The latency table of one of the devices, None if it has none."""
        return self.latency_table.get(device) if isinstance(self.latency_table, dict) else self.latency_table


class ConstraintsSpec(Section):
    """Upper limits; None: no limit. One MB is 10^6 bytes.

    Attributes:
        accuracy_drop_pp: Drop of selection top-1 against the floating-point model, in percentage points.
        latency_ms: Of one image.
        energy_mj: Of one image.
        memory_mb: Packed weights and the peak of live activations.
        model_size_mb: Packed weights with their scales.
        average_bits: Bits per weight.
    """

    accuracy_drop_pp: Limit | None = None
    latency_ms: Limit | None = None
    energy_mj: Limit | None = None
    memory_mb: Limit | None = None
    model_size_mb: Limit | None = None
    average_bits: Limit | None = None

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are given, by name."""
        return {name: value for name, value in self if value is not None}


class SearchSpec(Section):
    """How the space is searched, and when the search ends: at the first of the limits that is reached.

    Attributes:
        algorithm: Name of the algorithm.
        sensitivity: Whether the choices of every group are judged one at a time first, for seeds by integer programming
            and for the model of the surrogate.
        sensitivity_metric: How: by the Fisher form of the floating-point model, from a few backward passes, or by the
            KL divergence of a probe of each choice.
        sensitivity_images: Selection images that this takes.
        warm_start: Folder of an earlier run; members of its front join the seeds, at most ``population_size``. If it is
            of another model, each operation takes the precision of the one with its role at about its depth.
        seed_budgets: Budgets of each cost for which an integer program gives a seed; half of ``evaluations`` go to
            seeds at most.
        baselines: Searches to compare with at equal cost, after the search itself.
        racing: Whether a candidate stops after a quarter or half of the selection images if on these a member of the
            front dominates it with confidence. It counts as an evaluation, of fewer images. It saves a tenth or more of
            the images of NSGA-II, and next to nothing of the surrogate's; with 64 images or fewer nobody stops.
        population_size: Members of one generation; the surrogate evaluates its seeds at first, without sensitivities at
            least so many, then eight at a time.
        evaluations: Candidates to evaluate, seeds included.
        minutes: Time limit. A run that it ends depends on the speed of the machine.
        plateau_generations: Generations without a larger hypervolume; None: no such limit.
        seed: Seed of everything that is drawn.
        crossover_rate: Probability that two parents are crossed.
        mutation_rate: Probability that a gene of an offspring changes; None: one over the number of genes.
    """

    algorithm: Literal["surrogate", "nsga2", "greedy", "random"] = "surrogate"
    sensitivity: bool = True
    sensitivity_metric: Literal["fisher", "kl"] = "fisher"
    sensitivity_images: PositiveInt = 32
    warm_start: FilePath | None = None
    seed_budgets: NonNegativeInt = 6
    baselines: Annotated[
        tuple[Literal["milp", "greedy", "random", "nsga2"], ...],
        BeforeValidator(_one_or_more),
        AfterValidator(_refuse_repeats),
    ] = ()
    racing: bool = False
    population_size: Annotated[int, Field(ge=2)] = 24
    evaluations: PositiveInt = 400
    minutes: PositiveFloat | None = None
    plateau_generations: PositiveInt | None = None
    seed: NonNegativeInt = 0
    crossover_rate: Share = 0.9
    mutation_rate: Share | None = None


class EvaluationSpec(Section):
    """How candidates are evaluated.

    Attributes:
        batch_size: Images of one forward pass.
        threads: Threads of one evaluation; fixed, because sums depend on it and results must not depend on parallelism.
        parallel_evaluations: Evaluations in flight.
        executor: Where they run: in a ``thread`` of the run, a ``process`` of this machine, or an actor of a ``ray``
            cluster (``pip install 'evoquant[ray]'``), whose machines must have model and images at the same paths.
        ray_address: The cluster to join, as in ``auto`` or ``10.0.0.1:6379``. None: the one that the process is
            connected to already, else a cluster of this machine that ends with the run.
        test_points: Members of the front to judge on the test images, the knee first; None: all.
    """

    batch_size: PositiveInt = 32
    threads: PositiveInt = 1
    parallel_evaluations: PositiveInt = 2
    executor: Literal["thread", "process", "ray"] = "thread"
    ray_address: Annotated[str, Field(min_length=1)] | None = None
    test_points: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _address_is_used(self) -> Self:
        if self.ray_address is not None and self.executor != "ray":
            raise ValueError(f"ray_address goes with executor: ray, but got executor: {self.executor}")
        return self


class OutputSpec(Section):
    """Where results go.

    Attributes:
        dir: Folder of run folders.
    """

    dir: Path = Path("runs")


class Experiment(Section):
    """One experiment: everything that its result depends on, and where the result goes.

    Attributes:
        schema_version: Version of this format.
        name: Name of the run folder.
        model: What is quantized.
        architectures: Several models that share the evaluations and one front, each by what sets it apart from
            ``model``; none: there is only ``model``.
        data: On which images.
        target: For which device.
        space: Name of a shipped search space, path of your own, or the space itself.
        objectives: What is minimised.
        constraints: What must hold.
        search: How the space is searched.
        preparation: What is done to the model before any precision is chosen.
        compensation: How the error of rounding weights is made good.
        evaluation: How a candidate is judged.
        output: Where results go.
    """

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    model: ModelSpec
    architectures: tuple[ArchitectureSpec, ...] = ()
    data: DataSpec
    target: TargetSpec = TargetSpec()
    space: str | dict[str, Any] = "mobile_hybrid"
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1), AfterValidator(_refuse_repeats)] = (
        "kl",
        "latency_ms",
        "energy_mj",
        "memory_mb",
    )
    constraints: ConstraintsSpec = ConstraintsSpec()
    search: SearchSpec = SearchSpec()
    preparation: PreparationSpec = PreparationSpec()
    compensation: CompensationSpec = CompensationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    output: OutputSpec = OutputSpec()

    @field_validator("space")
    @classmethod
    def _resolve_file(cls, space: str | dict[str, Any], info: ValidationInfo) -> str | dict[str, Any]:
        return str(resolve(space, info)) if isinstance(space, str) and _is_file_name(space) else space

    @model_validator(mode="after")
    def _architectures_share_a_search(self) -> Self:
        if not self.architectures:
            return self
        names, models = [each.name for each in self.architectures], list(self.by_architecture().values())
        repeated = sorted({name for name in names if names.count(name) > 1})
        if len(names) < 2:
            raise ValueError("architectures: expected two or more, but got one; a single one belongs under model")
        if repeated:
            raise ValueError(f"architectures: each needs a name of its own, but {', '.join(repeated)} is repeated")
        for index, one in enumerate(models):
            for other, name in zip(models[:index], names, strict=False):
                if one.model == other.model:
                    raise ValueError(f"architectures: '{name}' and '{names[index]}' are the same model")
        unfit = {
            f"search.algorithm: {self.search.algorithm}": self.search.algorithm != "surrogate",
            "search.racing: true": self.search.racing,
            f"search.baselines: {list(self.search.baselines)}": bool(self.search.baselines),
            f"target.device: {list(self.target.device)}": len(self.target.device) > 1,
        }
        found = [setting for setting, is_found in unfit.items() if is_found]
        if found:
            raise ValueError(
                "architectures share their evaluations by what the surrogate expects of each on one device, without "
                f"racing and compared searches, but got {'; '.join(found)}"
            )
        return self

    @model_validator(mode="after")
    def _races_on_a_sample(self) -> Self:
        if self.search.racing and self.data.selection.seed is None:
            raise ValueError(
                "search.racing judges candidates by the first selection images, so they must be in random order: give "
                "data.selection a seed, or leave it at 0"
            )
        return self

    def by_architecture(self) -> dict[str | None, Experiment]:
        """The experiment of each architecture alone, by its name; with none the experiment itself, by None."""
        if not self.architectures:
            return {None: self}
        return {
            each.name: self.model_copy(update={"model": each.model.applied(self.model), "architectures": ()})
            for each in self.architectures
        }

    def of_architecture(self, name: str | None) -> Experiment:
        """The experiment of one architecture alone.

        Args:
            name: Its name; None: the experiment has no architectures.

        Raises:
            ConfigurationError: If a name is missing, or there is nothing to choose from.
            UnknownNameError: If no architecture has that name.
        """
        alone = self.by_architecture()
        if name in alone:
            return alone[name]
        if name is None:
            raise ConfigurationError(
                f"The experiment '{self.name}' has several architectures: {', '.join(filter(None, alone))}. Choose one "
                "with --architecture NAME, or with a point of their front."
            )
        if None in alone:
            raise ConfigurationError(
                f"The architecture '{name}' is wanted, but the experiment '{self.name}' has no architectures. Give the "
                "experiment that the front was found with."
            )
        raise UnknownNameError("architecture", name, [each for each in alone if each is not None])


def _is_file_name(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))
