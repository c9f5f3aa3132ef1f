import pytest

from evoquant.config import (
    DataSpec,
    EvaluationSpec,
    Experiment,
    ImageSet,
    ModelSpec,
    OutputSpec,
    SearchSpec,
    TargetSpec,
)
from evoquant.config.preparation import PreparationSpec
from evoquant.config.quantizers import CompensationSpec


def _small(folder):
    return Experiment(
        schema_version=1,
        name="small",
        model=ModelSpec(name="mobilevit_micro", pretrained=True),
        data=DataSpec(
            calibration=ImageSet(images="embedded:calibration", count=16),
            selection=ImageSet(images="embedded:selection", count=48),
            test=ImageSet(images="embedded:test", count=64),
        ),
        target=TargetSpec(device=("raspberry_pi_4",), latency="roofline"),
        space="mobile_hybrid",
        preparation=PreparationSpec(rescaling=()),
        compensation=CompensationSpec(weight_compensation="none", bias_correction=False),
        search=SearchSpec(population_size=6, evaluations=18, seed=3, sensitivity=False),
        evaluation=EvaluationSpec(batch_size=16, parallel_evaluations=2, test_points=2),
        output=OutputSpec(dir=folder),
    )


@pytest.fixture
def small_experiment(tmp_path):
    """A run of the embedded default that takes seconds; its latency is predicted, so it is the same everywhere."""
    return _small(tmp_path)


@pytest.fixture(scope="module")
def module_experiment(tmp_path_factory):
    """The same for what a whole module shares."""
    return _small(tmp_path_factory.mktemp("runs"))
