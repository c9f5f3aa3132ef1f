"""One pass of the calibration images through a captured program."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from evoquant.calibrate.statistics import Statistics, TensorObserver
from evoquant.errors import DataError, GraphError, did_you_mean

SPATIAL_DIMENSIONS = 4


def collect(
    program: fx.GraphModule,
    node_names: Collection[str],
    batches: Iterable[Tensor],
    *,
    channel_axis: Mapping[str, int] | None = None,
) -> Statistics:
    """Statistics of named tensors of a program over all calibration images, in one streaming pass.

    Each tensor is looked at where it is computed and freed after its last use, so memory is that of one batch plus a
    fixed amount for each name, whatever the number of images.

    Args:
        program: The captured model, in evaluation mode; not modified.
        node_names: Names of nodes, inputs of the program included.
        batches: Image batches, batch on axis 0; read once.
        channel_axis: Axis of the per-channel extremes by node name. A name that is not given has axis 1 where the
            tensor has four dimensions (channels of an image, heads of an attention), else the last one.

    Returns:
        One entry for each name.

    Raises:
        GraphError: If a name is not a node, or its value is not a float tensor.
        DataError: If there are no images.
        ModelError: If a value is not finite; the message names the node.
    """
    known = {node.name for node in program.graph.nodes}
    for name in node_names:
        if name not in known:
            raise GraphError(f"The program has no node '{name}' to calibrate.{did_you_mean(name, known)}")
    observing = _ObservingInterpreter(program, node_names, channel_axis or {})
    images = 0
    with torch.no_grad():
        for batch in batches:
            observing.run(batch)
            images += len(batch)
    if not images:
        raise DataError("The calibration set is empty: expected at least one image.")
    missing = [name for name in node_names if name not in observing.observers]
    if missing:
        raise GraphError(f"The nodes {', '.join(missing)} were never computed.")
    return Statistics(images, {name: observing.observers[name].finish() for name in node_names})


class _ObservingInterpreter(fx.Interpreter):
    """Runs a program node by node and shows the named values to their observers."""

    def __init__(self, program: fx.GraphModule, names: Collection[str], channel_axis: Mapping[str, int]) -> None:
        super().__init__(program)
        self.observers: dict[str, TensorObserver] = {}
        self._names = frozenset(names)
        self._channel_axis = channel_axis

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - a node may compute anything
        """Compute one node and, if it is named, observe its value."""
        value = super().run_node(n)
        if n.name in self._names:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise GraphError(
                    f"Node '{n.name}' cannot be calibrated: expected a float tensor, but got {type(value)}."
                )
            if n.name not in self.observers:
                axis = self._channel_axis.get(n.name, 1 if value.ndim == SPATIAL_DIMENSIONS else -1)
                self.observers[n.name] = TensorObserver(n.name, channel_axis=axis)
            self.observers[n.name].update(value)
        return value
