"""Memory of a recipe: results that overwrite an operand, and buffers that share a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evoquant.deploy.recipe import ALIGNMENT, Buffer, Step, View

OVERWRITING = frozenset({"softmax", "layer_norm", "group_norm", "activate", "add", "mul", "scale_rows"})
"""Steps whose kernel may write its result over an operand."""


def overwritten(
    buffers: Sequence[Buffer], steps: Sequence[Step], inputs: View, output: View
) -> tuple[list[Step], View]:
    """Let results be written over operands that nothing reads afterwards; what a step writes is then in the cache.

    Returns:
        The steps and the output, both on fewer buffers.
    """
    dies = _last_uses(steps, output)
    place: dict[int, int] = {}
    result: list[Step] = []
    for index, step in enumerate(steps):
        reads = {name: _moved(view, place) for name, view in step.reads.items()}
        step = replace(step, reads=reads, writes=_moved(step.writes, place))
        written = step.writes
        for view in reads.values() if step.kind in OVERWRITING else ():
            old = buffers[view.buffer]
            is_free = old.constant is None and view.buffer != inputs.buffer and dies[view.buffer] == index
            if is_free and replace(view, buffer=0) == replace(written, buffer=0) and _fills(view, buffers, written):
                place[written.buffer] = view.buffer
                dies[view.buffer] = dies[written.buffer]
                step = replace(step, writes=view)
                break
        result.append(step)
    return result, _moved(output, place)


def placed(buffers: Sequence[Buffer], steps: Sequence[Step], inputs: View, output: View) -> tuple[Buffer, ...]:
    """Buffers with their places in the shared memory: the largest first, each as low as its lifetime allows."""
    dies = _last_uses(steps, output)
    born = {inputs.buffer: -1}
    dies.setdefault(inputs.buffer, -1)
    for index, step in enumerate(steps):
        born.setdefault(step.writes.buffer, index)
    result = list(buffers)
    done: list[int] = []
    for index in sorted(born, key=lambda index: -buffers[index].elements):
        offset = 0
        for other in sorted(done, key=lambda other: result[other].offset):
            if born[other] > dies[index] or born[index] > dies[other]:
                continue
            start, end = result[other].offset, result[other].offset + result[other].elements
            if offset + buffers[index].elements <= start:
                break
            offset = max(offset, -(-end // ALIGNMENT) * ALIGNMENT)
        result[index] = replace(buffers[index], offset=offset)
        done.append(index)
    return tuple(result)


def _last_uses(steps: Sequence[Step], output: View) -> dict[int, int]:
    """By buffer, the last step that reads or writes it; the output is read after the last step."""
    dies: dict[int, int] = {}
    for index, step in enumerate(steps):
        for view in (*step.reads.values(), step.writes):
            dies[view.buffer] = index
    dies[output.buffer] = len(steps)
    return dies


def _moved(view: View, place: dict[int, int]) -> View:
    return replace(view, buffer=place.get(view.buffer, view.buffer))


def _fills(view: View, buffers: Sequence[Buffer], written: View) -> bool:
    """Whether both views are the whole of buffers of one size."""
    return view.offset == 0 and buffers[view.buffer].elements == buffers[written.buffer].elements
