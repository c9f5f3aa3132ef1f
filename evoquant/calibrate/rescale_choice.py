"""Factors that give the channels of an input like ranges, so that one scale serves them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from evoquant.calibrate.channel_flow import NO_ATOM, ChannelFlow, Reader
from evoquant.calibrate.channel_ranges import ChannelRange, Place, place
from evoquant.graph import CapturedModel

SMALLEST_RANGE = 1e-6
"""Ranges below it count as this one, relative to the greatest range of the input."""


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Channels whose factors are chosen together, because one operation reads them side by side.

    Attributes:
        name: The first operation that reads them.
        kind: The step that it belongs to: ``norms`` or ``chains``.
        atoms: Which atoms it consists of, (atoms,) bool.
        readers: Who reads them.
    """

    name: str
    kind: str
    atoms: Tensor
    readers: tuple[Reader, ...]


def families(flow: ChannelFlow) -> list[Family]:
    """All families of a model, in the order of computation."""
    read = [factors[factors != NO_ATOM] for factors in (flow.factors_read(reader) for reader in flow.readers)]
    pairs = [np.stack([np.full(len(factors), factors[0]), factors]) for factors in read if len(factors)]
    edges = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), dtype=np.int64)
    joined = coo_matrix((np.ones(edges.shape[1]), (edges[0], edges[1])), shape=(flow.factors, flow.factors))
    _, family_of = connected_components(joined, directed=False)
    members: dict[int, list[Reader]] = {}
    for reader, factors in zip(flow.readers, read, strict=True):
        if len(factors):
            members.setdefault(int(family_of[factors[0]]), []).append(reader)
    known = flow.factor_of != NO_ATOM
    family_of_atom = np.where(known, family_of[np.where(known, flow.factor_of, 0)] if flow.factors else 0, NO_ATOM)
    return [_family(flow, family_of_atom == number, readers) for number, readers in members.items()]


def _family(flow: ChannelFlow, atoms: NDArray[np.bool_], readers: list[Reader]) -> Family:
    sources = [source for source in flow.sources if atoms[source.atoms].any()]
    kind = "norms" if all(source.is_norm for source in sources) else "chains"
    return Family(readers[0].op, kind, torch.from_numpy(atoms), tuple(readers))


def equal_ranges(
    captured: CapturedModel,
    flow: ChannelFlow,
    family: Family,
    ranges: Mapping[Place, ChannelRange],
    *,
    activation_share: float = 1.0,
    weight_share: float = 0.0,
) -> Tensor:
    """Factors that bring the channels of a family nearer to one range, in the geometric mean over its readers.

    The factor of a channel is ``range**activation_share / column**weight_share``: with 1 and 0 all channels of the
    activations have one range and the columns of the weights get what differed; with a half and a half both differ
    alike. Where some channels of an input cannot be scaled, the others are brought to the greatest of these.

    Args:
        captured: The model.
        flow: Its channels.
        family: What to scale.
        ranges: Of the inputs.
        activation_share: Exponent of the range of a channel of the activations.
        weight_share: Exponent of the range of a column of the weights, relative to the range of its row.

    Returns:
        By atom, (atoms,) float64; 1 for atoms of other families.
    """
    total, count = torch.zeros(flow.factors, dtype=torch.float64), torch.zeros(flow.factors, dtype=torch.float64)
    for reader in family.readers:
        factors = torch.from_numpy(flow.factors_read(reader))
        free = factors != NO_ATOM
        magnitude = _bounded(ranges[place(reader)].magnitude).log()
        target = magnitude[free].mean() if bool(free.all()) else magnitude[~free].max()
        wanted = activation_share * (magnitude[free] - target)
        if weight_share:
            column = _bounded(_relative_columns(captured, reader.op)).log()[free]
            wanted = wanted - weight_share * (column - column.mean())
        total.index_add_(0, factors[free], wanted)
        count.index_add_(0, factors[free], torch.ones_like(wanted))
    by_factor = (total / count.clamp(min=1)).exp()
    factor = by_factor[torch.from_numpy(flow.factor_of).clamp(min=0)]
    return torch.where(family.atoms, factor, 1.0)


def _bounded(magnitude: Tensor) -> Tensor:
    return magnitude.clamp(min=max(SMALLEST_RANGE * float(magnitude.max()), 1e-30))


def _relative_columns(captured: CapturedModel, op: str) -> Tensor:
    """The greatest magnitude of each input channel's weights, each relative to the greatest one of its row.

    A row that reads one channel alone, as in a depthwise convolution, has its own scale and tells nothing: all ones.
    """
    weight = captured.weight(op)
    assert weight is not None, "a reader has a weight"
    geometry = captured.graph.op[op].geometry
    rows = weight.double().flatten(2).abs().amax(2) if weight.ndim > 2 else weight.double().abs()
    relative = rows / rows.amax(1, keepdim=True).clamp(min=1e-30)
    groups = 1 if geometry is None else geometry.groups
    return relative.view(groups, -1, relative.shape[1]).amax(1).reshape(-1)
