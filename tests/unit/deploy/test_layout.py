"""Layouts against the strides of torch: both say where the values of a tensor lie."""

from itertools import pairwise
from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st

from evoquant.deploy.layout import Layout, common_factors, merged


def positions(layout):
    """Place in memory of every value, in the order of the tensor."""
    places = torch.full((1,), layout.offset)
    for axis in layout.axes:
        index = torch.zeros(1, dtype=torch.long)
        for size, stride in axis:
            index = (index[:, None] + torch.arange(size) * stride).reshape(-1)
        places = (places[:, None] + index).reshape(-1)
    return places.reshape(layout.shape)


def memory(shape):
    return torch.arange(prod(shape)).reshape(shape)


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def permuted(draw):
    shape = draw(shapes)
    order = tuple(draw(st.permutations(range(len(shape)))))
    return shape, order


@given(permuted())
def test_a_permuted_tensor_lies_where_torch_says(case):
    shape, order = case
    layout = Layout.dense(0, shape).permute(order)
    assert torch.equal(positions(layout), memory(shape).permute(order))
    assert layout.is_dense
    assert layout.shape == tuple(shape[axis] for axis in order)


@given(permuted())
def test_a_dense_tensor_in_another_order_is_the_inverse_permutation(case):
    shape, order = case
    layout = Layout.dense(0, shape, order=order)
    inner_first = torch.arange(prod(shape)).reshape([shape[axis] for axis in order])
    back = [order.index(axis) for axis in range(len(order))]
    assert torch.equal(positions(layout), inner_first.permute(back))


@given(permuted(), st.data())
def test_a_reshape_without_copy_keeps_the_order_of_values(case, data):
    shape, order = case
    layout = Layout.dense(0, shape).permute(order)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(shape)), max_size=3)) | {0, len(shape)})
    wanted = tuple(prod(layout.shape[start:end]) for start, end in pairwise(cuts))
    found = layout.reshape(wanted)
    assert found is not None, "joining axes needs no copy"
    assert torch.equal(positions(found), memory(shape).permute(order).reshape(wanted))
    assert torch.equal(positions(found.reshape(layout.shape)), positions(layout))


def test_the_patches_of_mobilevit_are_a_view():
    """(1, C, H, W) to (patch pixel, patch, C) and back, as timm writes it."""
    channels, height, width = 5, 4, 6
    image = memory((1, channels, height, width))
    layout = Layout.dense(0, (1, channels, height, width))
    steps = [((channels * height // 2, 2, width // 2, 2), (0, 2, 1, 3)),
             ((1, channels, height * width // 4, 4), (0, 3, 2, 1)),
             ((4, height * width // 4, channels), (0, 1, 2))]  # fmt: skip
    for shape, order in steps:
        image, layout = image.reshape(shape).permute(order), layout.reshape(shape)
        assert layout is not None
        layout = layout.permute(order)
        assert torch.equal(positions(layout), image)
    assert layout.strides is None, "a row of patches has no single stride"


def test_a_reshape_that_needs_a_copy_says_so():
    assert Layout.dense(0, (2, 6)).permute((1, 0)).reshape((4, 3)) is None
    assert Layout.dense(0, (4, 6)).reshape((3, 8)) is not None
    assert Layout.dense(0, (4, 6)).permute((1, 0)).slice(1, 0, 2).reshape((4, 3)) is None


def test_slices_and_repeated_axes():
    layout = Layout.dense(0, (3, 4, 5))
    part = layout.slice(1, 1, 2)
    assert torch.equal(positions(part), memory((3, 4, 5))[:, 1:3])
    assert not part.is_dense
    one = layout.slice(1, 2, 1)
    assert torch.equal(positions(one.without(1)), memory((3, 4, 5))[:, 2])
    assert torch.equal(positions(one.expand((3, 7, 5))), memory((3, 4, 5))[:, 2:3].expand(3, 7, 5))
    assert layout.reshape((12, 5)).slice(0, 0, 4).offset == 0
    assert Layout(0, (((2, 1), (2, 6)),)).slice(0, 1, 2) is None


def test_rows_are_a_matrix_with_contiguous_columns():
    layout = Layout.dense(0, (2, 3, 8))
    assert layout.rows() == (6, 8, 8)
    assert layout.slice(2, 4, 4).rows() == (6, 4, 8)
    assert layout.permute((0, 2, 1)).rows() is None
    assert layout.permute((1, 0, 2)).rows() is None
    assert Layout.dense(0, (1, 8)).rows() == (1, 8, 8)


def test_factors_that_lie_like_one_are_merged():
    assert merged([(2, 12), (3, 4), (1, 99), (4, 1)]) == ((24, 1),)
    assert merged([(2, 4), (3, 8)]) == ((2, 4), (3, 8))


@given(permuted(), st.data())
def test_common_factors_visit_the_same_values_of_both(case, data):
    shape, order = case
    a = Layout.dense(0, shape).permute(order)
    b = Layout.dense(1, a.shape, order=tuple(data.draw(st.permutations(range(len(shape))))))
    axes = common_factors(a, b)
    assert axes is not None
    places = [
        Layout(0, tuple(((size, stride[which]),) if size > 1 else () for size, *stride in axes)) for which in (0, 1)
    ]
    assert torch.equal(positions(places[0]).reshape(-1), positions(a).reshape(-1))
    assert torch.equal(positions(places[1]).reshape(-1), positions(b).reshape(-1))


def test_factors_that_clash_need_another_way():
    a = Layout(0, (((2, 3), (3, 1)),))
    assert common_factors(a, Layout(1, (((3, 2), (2, 1)),))) is None


@given(permuted(), st.data())
def test_without_gaps_values_keep_their_order_in_memory(case, data):
    shape, order = case
    axis = data.draw(st.integers(0, len(shape) - 1))
    start = data.draw(st.integers(0, shape[axis] - 1))
    part = Layout.dense(0, shape).slice(axis, start, data.draw(st.integers(1, shape[axis] - start))).permute(order)
    closed = Layout(0, part.compact())
    assert closed.shape == part.shape
    assert closed.is_dense
    ranks = positions(part).flatten().argsort().argsort()
    assert torch.equal(positions(closed).flatten(), ranks)


def test_repeated_values_cannot_be_without_gaps():
    assert Layout.dense(0, (1, 3)).expand((4, 3)).compact() is None


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2), st.integers(1, 6))
def test_rows_in_any_order_get_another_length(height, width, channels, spare, length):
    image = Layout.dense(0, (1, 2 * height, 2 * width, channels + spare)).slice(3, spare, channels)
    patches = image.reshape((1, height, 2, width, 2, channels)).permute((0, 5, 2, 4, 1, 3))
    x = patches.reshape((1, channels, 4, height * width)) or patches
    stride = x.row_stride(1)
    if channels > 1:
        assert stride == channels + spare
    if stride is not None:
        longer = Layout(0, x.with_row(1, length))
        assert longer.shape == (1, length, *x.shape[2:])
        assert longer.is_dense
        rows = (positions(x).select(1, 0) - x.offset) // stride
        assert torch.equal(positions(longer).select(1, 0), rows * length)


def test_rows_that_are_repeated_are_none():
    assert Layout.dense(0, (1, 3, 1, 1)).expand((1, 3, 2, 2)).row_stride(1) is None
    assert Layout.dense(0, (2, 3)).row_stride(0) is None
