import weakref

import numpy as np
import pytest
import torch
from torch import nn

from evoquant.calibrate import TensorObserver, collect
from evoquant.errors import DataError, GraphError, ModelError


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.head(x.mean((2, 3)))


def program_of(model, example):
    model.eval()
    batch = torch.export.Dim("batch", max=1024)
    exported = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    return exported.module()


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return program_of(Tiny(), torch.randn(2, 3, 8, 8))


def names(program):
    placeholder = next(node.name for node in program.graph.nodes if node.op == "placeholder")
    return placeholder, "conv2d", "linear"


@pytest.fixture
def images():
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_statistics_are_those_of_the_tensors(program, images):
    statistics = collect(program, names(program), images.split(8))
    assert statistics.images == 24
    source = statistics[names(program)[0]]
    assert source.count == images.numel()
    assert (source.minimum, source.maximum) == (float(images.min()), float(images.max()))
    assert source.mean == pytest.approx(float(images.double().mean()), abs=1e-6)
    assert source.mean_square == pytest.approx(float(images.double().square().mean()), rel=1e-5)
    assert source.channel_axis == 1
    assert np.array_equal(source.channel_minimum, images.amin((0, 2, 3)).numpy())
    assert np.array_equal(source.channel_maximum, images.amax((0, 2, 3)).numpy())
    logits = program(images).detach()
    head = statistics["linear"]
    assert head.channel_axis == 1
    assert head.channel_maximum == pytest.approx(logits.amax(0).numpy(), abs=1e-5)
    assert int(head.counts.sum()) == head.count == logits.numel()


def test_streaming_equals_one_batch(program, images):
    whole = collect(program, names(program), [images])
    parts = collect(program, names(program), images.split(5))
    assert parts.images == whole.images
    for name in names(program):
        first, second = whole[name], parts[name]
        assert first.count == second.count
        assert (first.minimum, first.maximum) == pytest.approx((second.minimum, second.maximum), abs=1e-5)
        assert first.mean == pytest.approx(second.mean, abs=1e-5)
        assert first.mean_square == pytest.approx(second.mean_square, rel=1e-4)
    first, second = whole[names(program)[0]], parts[names(program)[0]]
    assert np.array_equal(first.counts, second.counts)
    assert (first.first_bin, first.bin_width) == (second.first_bin, second.bin_width)


def test_batches_are_freed_as_the_pass_goes_on(program):
    alive = []

    def batches():
        for index in range(20):
            assert sum(reference() is not None for reference in alive) <= 1
            batch = torch.full((2, 3, 8, 8), float(index))
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    statistics = collect(program, names(program), batches())
    assert statistics.images == 40
    assert {tensor.counts.shape for tensor in statistics.tensors.values()} == {(2048,)}


def test_channel_axis_can_be_chosen(program, images):
    source = names(program)[0]
    statistics = collect(program, [source], [images], channel_axis={source: -1})
    assert statistics[source].channel_axis == 3
    assert np.array_equal(statistics[source].channel_minimum, images.amin((0, 1, 2)).numpy())


def test_unknown_nodes_are_refused(program, images):
    with pytest.raises(GraphError, match=r"no node 'conv2'.*Did you mean 'conv2d'"):
        collect(program, ["conv2"], [images])


def test_values_that_are_not_float_tensors_are_refused(program, images):
    with pytest.raises(GraphError, match="'output' cannot be calibrated: expected a float tensor"):
        collect(program, ["output"], [images])


def test_no_images_are_refused(program):
    with pytest.raises(DataError, match="calibration set is empty"):
        collect(program, names(program), [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_their_node(program, images, value):
    images[3, 1, 2, 2] = value
    with pytest.raises(ModelError, match=f"'{names(program)[0]}' has values that are not finite"):
        collect(program, names(program), [images])


def test_statistics_of_an_unknown_node(program, images):
    with pytest.raises(DataError, match="No statistics of node 'conv9'"):
        collect(program, names(program), [images])["conv9"]


def test_observer_refuses_a_changed_number_of_channels():
    observer = TensorObserver("x", channel_axis=-1)
    with pytest.raises(DataError, match="never computed"):
        observer.finish()
    observer.update(torch.zeros(2, 3))
    with pytest.raises(DataError, match="4 channels on axis 1, but had 3"):
        observer.update(torch.zeros(2, 4))


def test_quantiles_agree_with_the_values():
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(4))
    observer = TensorObserver("x", channel_axis=-1)
    observer.update(values[None])
    statistics = observer.finish()
    for share in (0.0, 0.0005, 0.1, 0.5, 0.9995, 1.0):
        expected = float(torch.quantile(values, share))
        assert statistics.quantile(share) == pytest.approx(expected, abs=2 * statistics.bin_width)
    assert statistics.quantile(0.0) == statistics.minimum
    assert statistics.quantile(1.0) == statistics.maximum
