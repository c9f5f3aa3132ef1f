"""Dividing channels by factors without changing what a program computes.

Each atom x of a channel flow becomes ``x' = x / factor``. Its source gives x' at once, and everything that reads it
multiplies by the factor:

    source   W <- W / factor (rows),       b <- b / factor
    reader   W <- W * factor (columns)

Factors are a tensor of one number for each atom, float64, (atoms,).

References:
    Z. Li et al., RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers, ICCV 2023,
    https://arxiv.org/abs/2212.08254, section 3.2: norms and the layers that read them.
    M. Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019,
    https://arxiv.org/abs/1906.04721, section 4.1: convolutions with a rectifier between.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from evoquant.calibrate.channel_flow import NO_ATOM, ChannelFlow, Reader, Source
from evoquant.calibrate.moments import SplitMoments
from evoquant.graph import CapturedModel
from evoquant.graph.constants import attribute, set_attribute

AFFINE = (2, 3)
"""Positions of weight and bias among the arguments of a norm."""


def rescale(captured: CapturedModel, flow: ChannelFlow, factors: Tensor) -> CapturedModel:
    """A model that computes the same with other channels.

    Args:
        captured: The model that ``flow`` was traced from; it is not changed.
        flow: Its channels.
        factors: By atom; equal for atoms that are added to each other.

    Returns:
        A copy that shares all weights that are equal.
    """
    changed = captured.clone()
    for reader in flow.readers:
        _read_rescaled(changed, reader, _read_by(reader, factors))
    for source in flow.sources:
        _give_rescaled(changed, source, factors[source.atoms])
    return changed


def _read_by(reader: Reader, factors: Tensor) -> Tensor:
    """The factor of each channel of an input."""
    atoms = torch.from_numpy(reader.atoms)
    return torch.where(atoms != NO_ATOM, factors[atoms.clamp(min=0)], 1.0)


def _is_identity(factor: Tensor) -> bool:
    return bool((factor == 1).all())


def _read_rescaled(captured: CapturedModel, reader: Reader, factor: Tensor) -> None:
    if _is_identity(factor):
        return
    weight = captured.weight(reader.op)
    assert weight is not None, "a reader has a weight"
    captured.set_weight(reader.op, weight.double() * _by_input_channel(captured, reader.op, factor))


def _by_input_channel(captured: CapturedModel, op: str, values: Tensor) -> Tensor:
    """Values of the input channels, (in,), in a shape that broadcasts to the weight of the operation."""
    geometry = captured.graph.op[op].geometry
    shape = captured.graph.op[op].weight_shape
    if geometry is None:
        return values
    rows = values.view(geometry.groups, -1).repeat_interleave(shape[0] // geometry.groups, dim=0)
    return rows[:, :, None, None]


def _give_rescaled(captured: CapturedModel, source: Source, factor: Tensor) -> None:
    if _is_identity(factor):
        return
    if source.is_norm:
        _give_from_norm(captured.program, source.name, factor)
        return
    weight, bias = captured.weight(source.name), captured.bias(source.name)
    assert weight is not None, "the source of an atom has a weight"
    captured.set_weight(source.name, weight.double() / factor.view(-1, *[1] * (weight.ndim - 1)))
    if bias is not None:
        captured.set_bias(source.name, bias.double() / factor)


def _give_from_norm(program: fx.GraphModule, name: str, factor: Tensor) -> None:
    for path in affine_paths(program, name):
        set_attribute(program, path, attribute(program, path).double() / factor)


def affine_paths(program: fx.GraphModule, norm: str) -> tuple[str, str]:
    """Where the weight and the bias of a norm are stored."""
    node = next(node for node in program.graph.nodes if node.name == norm)
    weight, bias = (str(node.args[position].target) for position in AFFINE)
    return weight, bias


def rescaled_moments(
    captured: CapturedModel, flow: ChannelFlow, factors: Tensor, moments: Mapping[str, SplitMoments]
) -> dict[str, SplitMoments]:
    """Moments of the inputs of the rescaled model, from those of the model; what stays as it was is shared.

    Args:
        captured: The model that ``flow`` was traced from.
        flow: Its channels.
        factors: What ``rescale`` is called with.
        moments: Of the model's inputs, by operation.
    """
    found = dict(moments)
    for reader in flow.readers:
        op = captured.graph.op[reader.op]
        factor = _read_by(reader, factors)
        if op.name in moments and not _is_identity(factor):
            groups, width = moments[op.name].fitted.mean.shape
            times = groups * width // len(factor)
            found[op.name] = moments[op.name].rescaled(factor.repeat_interleave(times).view(groups, width))
    return found
