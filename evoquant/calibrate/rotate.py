"""Rotating the channels of a stream, without changing what a program computes.

A rotation R turns every vector of channels x into ``x' = R x``. Writers give x' at once, readers turn it back:

    writer   W <- R W,   b <- R b          constant   c <- R c
    reader   W <- W R^T

The scores of an attention read q and k that are both rotated: ``(R q)·(R k) = q·k``.

Between them there may be norms over all channels. A rotation that keeps the vector of ones keeps means and variances,
so that a norm without its affine part gives R times what it gave; readers take the affine part before:

    norm     gamma <- 1, beta <- 0         reader     W <- W diag(gamma),   b <- b + W beta

Each new channel is a mixture of all old ones: channels become alike, their values bell-shaped, and columns of weights
too. One scale then serves all of them.

References:
    S. Ashkboos et al., QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, NeurIPS 2024,
    https://arxiv.org/abs/2404.00456, section 4: rotations folded into the weights around a residual stream and v.
    S. Ashkboos et al., SliceGPT: Compress Large Language Models by Deleting Rows and Columns, ICLR 2024,
    https://arxiv.org/abs/2401.15024, section 3: norms commute with rotations. There the mean is taken off in the
    weights first; keeping the ones needs no change of the norm.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from scipy.fft import dct
from scipy.linalg import hadamard
from torch import Tensor

from evoquant.calibrate.rescale import affine_paths
from evoquant.calibrate.streams import Side, Stream
from evoquant.graph import CapturedModel
from evoquant.graph.constants import attribute, set_attribute


def even_rotation(channels: int, *, seed: int) -> Tensor:
    """An orthogonal matrix that mixes all channels about evenly, float64, (channels, channels).

    It is Hadamard's where there is one of that size, else that of the cosine transform, with random signs.

    Args:
        channels: At least 1.
        seed: Equal seeds give equal matrices.
    """
    is_power = channels & (channels - 1) == 0
    even = hadamard(channels) / channels**0.5 if is_power else dct(np.eye(channels), axis=0, norm="ortho")
    signs = torch.randint(2, (channels,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.from_numpy(even).double() * signs


def ones_keeping_rotation(channels: int, *, seed: int) -> Tensor:
    """A random orthogonal matrix that keeps the vector of ones, float64, (channels, channels).

    Args:
        channels: At least 1.
        seed: Equal seeds give equal matrices.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    basis[:, 0] = 1.0
    other = torch.randn(channels - 1, channels - 1, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(basis).Q
    mixed = torch.linalg.qr(other).Q
    kept, turned = basis[:, :1], basis[:, 1:]
    rotation: Tensor = kept @ kept.T + turned @ mixed @ turned.T
    return rotation


def rotate(captured: CapturedModel, streams: Iterable[Stream], *, seed: int = 0) -> CapturedModel:
    """A model that computes the same with the channels of some streams rotated.

    Args:
        captured: The model that the streams were found in; not changed.
        streams: Which streams.
        seed: Of the rotations, each of which depends on the name of its stream too.

    Returns:
        A copy that shares all weights that are equal.
    """
    changed = captured.clone()
    for stream in streams:
        make = ones_keeping_rotation if stream.norms else even_rotation
        rotation = make(stream.channels, seed=seed + zlib.crc32(stream.name.encode()))
        for reader in stream.readers:
            _read_rotated(changed, reader, rotation)
        for norm in stream.norms:
            gamma, beta = affine_paths(changed.program, norm)
            set_attribute(changed.program, gamma, torch.ones(stream.channels))
            set_attribute(changed.program, beta, torch.zeros(stream.channels))
        for writer in stream.writers:
            _write_rotated(changed, writer, rotation)
        for path, axis in stream.constants:
            stored = attribute(changed.program, path).double().movedim(axis, -1)
            set_attribute(changed.program, path, (stored @ rotation.T).movedim(-1, axis))
    ops = (replace(op, has_bias=op.weight_count > 0 and changed.bias(op.name) is not None) for op in captured.graph.ops)
    return CapturedModel(changed.program, replace(captured.graph, ops=tuple(ops)), captured.batch_norms)


def _read_rotated(captured: CapturedModel, reader: Side, rotation: Tensor) -> None:
    weight, bias = captured.weight(reader.op), captured.bias(reader.op)
    assert weight is not None, "a reader has a weight"
    columns = weight.double().movedim(1, -1)
    if reader.norm is not None:
        gamma, beta = (
            attribute(captured.program, path).double() for path in affine_paths(captured.program, reader.norm)
        )
        moved = (columns @ beta).reshape(len(columns), -1).sum(1)
        captured.set_bias(reader.op, moved if bias is None else bias.double() + moved)
        columns = columns * gamma
    captured.set_weight(reader.op, _rotated(columns, reader.places, rotation).movedim(-1, 1))


def _write_rotated(captured: CapturedModel, writer: Side, rotation: Tensor) -> None:
    weight, bias = captured.weight(writer.op), captured.bias(writer.op)
    assert weight is not None, "a writer has a weight"
    captured.set_weight(writer.op, _rotated(weight.double().movedim(0, -1), writer.places, rotation).movedim(-1, 0))
    if bias is not None:
        captured.set_bias(writer.op, _rotated(bias.double(), writer.places, rotation))


def _rotated(values: Tensor, places: Tensor, rotation: Tensor) -> Tensor:
    """The same with the sets of channels at these places of the last axis rotated."""
    result = values.clone()
    result[..., places] = values[..., places] @ rotation.T
    return result
