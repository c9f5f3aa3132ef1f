"""Dividing channels by factors and moving them by constants, without changing what a program computes.

Each atom x of a channel flow becomes ``x' = x / factor - shift``. Its source gives x' at once, and everything that
reads it multiplies by the factor and adds the shift back:

    source   W <- W / factor (rows),       b <- b / factor - shift
    reader   W <- W * factor (columns),    b <- b + Σ W * factor * shift

The weighted mean of an attention hands x' on to the projection behind it. A shift of k changes all scores of a query
by the same amount, which the softmax does not see.

References:
    Z. Li et al., RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers, ICCV 2023,
    https://arxiv.org/abs/2212.08254, section 3.2: norms and the layers that read them.
    M. Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019,
    https://arxiv.org/abs/1906.04721, section 4.1: convolutions with a rectifier between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from evoquant.calibrate.channel_flow import NO_ATOM, ChannelFlow, Reader, Source
from evoquant.calibrate.moments import SplitMoments
from evoquant.graph import CapturedModel
from evoquant.graph.constants import attribute, set_attribute
from evoquant.types import OpKind

AFFINE = (2, 3)
"""Positions of weight and bias among the arguments of a norm."""


@dataclass(frozen=True, slots=True, eq=False)
class Rescaling:
    """A factor and a shift for each atom, float64, (atoms,)."""

    factor: Tensor
    shift: Tensor

    @classmethod
    def identity(cls, flow: ChannelFlow) -> Rescaling:
        """Nothing is changed."""
        atoms = len(flow.factor_of)
        return cls(torch.ones(atoms, dtype=torch.float64), torch.zeros(atoms, dtype=torch.float64))

    def only(self, atoms: Tensor) -> Rescaling:
        """The part of it that concerns these atoms, (atoms,) bool."""
        return Rescaling(
            torch.where(atoms, self.factor, torch.ones_like(self.factor)),
            torch.where(atoms, self.shift, torch.zeros_like(self.shift)),
        )

    def read(self, reader: Reader) -> tuple[Tensor, Tensor]:
        """Factor and shift of each channel of an operand."""
        atoms = torch.from_numpy(reader.atoms)
        known = atoms != NO_ATOM
        at = atoms.clamp(min=0)
        return torch.where(known, self.factor[at], 1.0), torch.where(known, self.shift[at], 0.0)


def rescale(captured: CapturedModel, flow: ChannelFlow, rescaling: Rescaling) -> CapturedModel:
    """A model that computes the same with other channels.

    Args:
        captured: The model that ``flow`` was traced from; it is not changed.
        flow: Its channels.
        rescaling: Equal factors for atoms that are added to each other; no shift for atoms that are not shiftable.

    Returns:
        A copy that shares all weights that are equal.
    """
    changed = captured.clone()
    for reader in flow.readers:
        if captured.graph.op[reader.op].kind is not OpKind.MATMUL:
            _read_rescaled(changed, reader, rescaling)
    for source in flow.sources:
        _give_rescaled(changed, source, rescaling)
    ops = tuple(
        replace(op, has_bias=op.weight_count > 0 and changed.bias(op.name) is not None) for op in captured.graph.ops
    )
    return CapturedModel(changed.program, replace(captured.graph, ops=ops), captured.batch_norms)


def _read_rescaled(captured: CapturedModel, reader: Reader, rescaling: Rescaling) -> None:
    factor, shift = rescaling.read(reader)
    if bool((factor == 1).all()) and bool((shift == 0).all()):
        return
    weight = captured.weight(reader.op)
    assert weight is not None, "a reader that is not a matmul has a weight"
    scaled = weight.double() * by_input_channel(captured, reader.op, factor)
    captured.set_weight(reader.op, scaled)
    if bool((shift != 0).any()):
        bias = captured.bias(reader.op)
        moved = (scaled * by_input_channel(captured, reader.op, shift)).flatten(1).sum(1)
        captured.set_bias(reader.op, moved if bias is None else bias.double() + moved)


def by_input_channel(captured: CapturedModel, op: str, values: Tensor) -> Tensor:
    """Values of the input channels, (in,), in a shape that broadcasts to the weight of the operation."""
    geometry = captured.graph.op[op].geometry
    shape = captured.graph.op[op].weight_shape
    if geometry is None:
        return values
    rows = values.view(geometry.groups, -1).repeat_interleave(shape[0] // geometry.groups, dim=0)
    return rows[:, :, None, None]


def _give_rescaled(captured: CapturedModel, source: Source, rescaling: Rescaling) -> None:
    factor, shift = rescaling.factor[source.atoms], rescaling.shift[source.atoms]
    if bool((factor == 1).all()) and bool((shift == 0).all()):
        return
    if source.is_norm:
        _give_from_norm(captured.program, source.name, factor, shift)
        return
    weight, bias = captured.weight(source.name), captured.bias(source.name)
    assert weight is not None, "the source of an atom has a weight"
    captured.set_weight(source.name, weight.double() / factor.view(-1, *[1] * (weight.ndim - 1)))
    if bias is not None or bool((shift != 0).any()):
        captured.set_bias(source.name, (0.0 if bias is None else bias.double()) / factor - shift)


def _give_from_norm(program: fx.GraphModule, name: str, factor: Tensor, shift: Tensor) -> None:
    node = next(node for node in program.graph.nodes if node.name == name)
    paths = [str(node.args[position].target) for position in AFFINE]
    gamma, beta = (attribute(program, path).double() for path in paths)
    set_attribute(program, paths[0], gamma / factor)
    set_attribute(program, paths[1], beta / factor - shift)


def rescaled_moments(
    captured: CapturedModel, flow: ChannelFlow, rescaling: Rescaling, moments: Mapping[str, SplitMoments]
) -> dict[str, SplitMoments]:
    """Moments of the inputs of the rescaled model, from those of the model; what stays as it was is shared.

    Args:
        captured: The model that ``flow`` was traced from.
        flow: Its channels.
        rescaling: What ``rescale`` is called with.
        moments: Of the model's inputs, by operation.
    """
    found = dict(moments)
    for reader in flow.readers:
        op = captured.graph.op[reader.op]
        factor, shift = rescaling.read(reader)
        if op.name in moments and not (bool((factor == 1).all()) and bool((shift == 0).all())):
            groups, width = moments[op.name].fitted.mean.shape
            times = groups * width // len(factor)
            by_input = (values.repeat_interleave(times).view(groups, width) for values in (factor, shift))
            found[op.name] = moments[op.name].rescaled(*by_input)
    return found
