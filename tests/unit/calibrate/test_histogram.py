import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evoquant.calibrate.histogram import BINS, StreamingHistogram

POSITIVE = st.floats(2.0**-40, 2.0**60, width=32)
FINITE = st.one_of(POSITIVE, POSITIVE.map(float.__neg__), st.just(0.0))


def feed(batches):
    histogram = StreamingHistogram()
    for batch in batches:
        histogram.update(batch, float(batch.min()), float(batch.max()))
    return histogram


def same(first, second):
    return (
        first.first_bin == second.first_bin
        and first.exponent == second.exponent
        and np.array_equal(first.counts, second.counts)
    )


@given(values=st.lists(FINITE, min_size=1, max_size=60), cuts=st.lists(st.integers(1, 60), max_size=5), data=st.data())
def test_batches_and_order_do_not_matter(values, cuts, data):
    whole = feed([torch.tensor(values)])
    shuffled = torch.tensor(data.draw(st.permutations(values)))
    parts = [part for part in torch.tensor_split(shuffled, sorted(set(cuts))) if part.numel()]
    assert same(feed(parts), whole)


@given(values=st.lists(FINITE, min_size=1, max_size=60))
def test_counts_are_those_of_the_edges(values):
    histogram = feed([torch.tensor([value]) for value in values])
    expected = np.zeros(BINS, dtype=np.int64)
    for value in values:
        expected[math.floor(value / histogram.width) - histogram.first_bin] += 1
    assert np.array_equal(histogram.counts, expected)
    assert histogram.counts.sum() == len(values)


def test_width_is_the_smallest_that_covers():
    values = torch.linspace(-3, 4.999, 100_000)
    histogram = feed([values])
    assert histogram.width == 2.0**-8  # 8 / 2**-8 = 2048 widths
    covered = (histogram.first_bin * histogram.width, (histogram.first_bin + BINS) * histogram.width)
    assert covered[0] <= -3
    assert covered[1] >= 4.999
    assert histogram.counts.sum() == 100_000


@pytest.mark.parametrize("value", [0.0, 5.0, -1e-38, 3e38])
def test_one_value(value):
    histogram = feed([torch.full((7,), value)] * 3)
    assert histogram.counts[math.floor(value / histogram.width) - histogram.first_bin] == 21


def test_zeros_first_and_large_values_later():
    values = torch.tensor([1e20, -1e20, 0.0])
    assert same(feed([torch.zeros(5), values]), feed([torch.cat([values, torch.zeros(5)])]))


def test_blocks_are_counted_completely():
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    histogram = feed([values])
    edges = (histogram.first_bin + np.arange(BINS + 1)) * histogram.width
    assert np.array_equal(histogram.counts, np.histogram(values.double().numpy(), edges)[0])
