"""Results over their operands, and buffers that share memory without meeting."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evoquant.deploy.memory import overwritten, placed
from evoquant.deploy.recipe import ALIGNMENT, Buffer, Step, View


def whole(buffer, size):
    return View(buffer, (size,), (1,))


@st.composite
def chains(draw):
    """Steps that each read one or two earlier tensors and write a new one."""
    sizes = draw(st.lists(st.integers(1, 70), min_size=2, max_size=12))
    steps = []
    for index in range(1, len(sizes)):
        reads = draw(st.sets(st.integers(max(0, index - 4), index - 1), min_size=1, max_size=2))
        views = {f"r{number}": whole(number, sizes[number]) for number in reads}
        steps.append(Step("copy", f"n{index}", views, whole(index, sizes[index])))
    return [Buffer(size) for size in sizes], steps


@given(chains())
def test_buffers_that_are_needed_together_do_not_overlap(case):
    buffers, steps = case
    output = steps[-1].writes
    found = placed(buffers, steps, whole(0, buffers[0].elements), output)
    memory = np.full(max(b.offset + b.elements for b in found), -1)
    memory[found[0].offset : found[0].offset + found[0].elements] = 0
    for index, step in enumerate(steps):
        for view in step.reads.values():
            start = found[view.buffer].offset
            owner = memory[start : start + found[view.buffer].elements]
            assert (owner == view.buffer).all(), f"step {index} reads what was overwritten"
        start = found[step.writes.buffer].offset
        memory[start : start + found[step.writes.buffer].elements] = step.writes.buffer
    assert all(buffer.offset % ALIGNMENT == 0 for buffer in found)


def test_buffers_of_a_chain_share_two_places():
    buffers = [Buffer(64)] * 6
    steps = [Step("copy", str(i), {"x": whole(i, 64)}, whole(i + 1, 64)) for i in range(5)]
    found = placed(buffers, steps, whole(0, 64), whole(5, 64))
    assert {buffer.offset for buffer in found} == {0, 64}


def add(a, b, out, size=8):
    return Step("add", f"n{out}", {"a": whole(a, size), "b": whole(b, size)}, whole(out, size))


def test_a_result_takes_the_place_of_an_operand_that_nothing_reads_later():
    buffers = [Buffer(8)] * 4
    steps = [Step("copy", "n1", {"x": whole(0, 8)}, whole(1, 8)), add(0, 1, 2), add(2, 1, 3)]
    found, output = overwritten(buffers, steps, whole(0, 8), whole(3, 8))
    assert found[1].writes.buffer == 2, "both operands are needed later, or are the image"
    assert found[2].writes.buffer == 2
    assert output.buffer == 2


def test_the_image_and_stored_tensors_are_never_overwritten():
    buffers = [Buffer(8), Buffer(8, "weight"), Buffer(8), Buffer(8)]
    steps = [add(0, 1, 2), add(2, 1, 3)]
    found, _ = overwritten(buffers, steps, whole(0, 8), whole(3, 8))
    assert [step.writes.buffer for step in found] == [2, 2]


def test_a_part_of_a_buffer_is_not_overwritten():
    buffers = [Buffer(8), Buffer(16), Buffer(8)]
    part = View(1, (8,), (1,), 8)
    steps = [Step("copy", "a", {"x": whole(0, 8)}, part), Step("add", "b", {"a": part, "b": whole(0, 8)}, whole(2, 8))]
    found, output = overwritten(buffers, steps, whole(0, 8), whole(2, 8))
    assert found[1].writes.buffer == 2
    assert output.buffer == 2
