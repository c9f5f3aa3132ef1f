"""From a module to one functional ATen graph: ``torch.export``, then a plain ``GraphModule`` without guards."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from evoquant.errors import GraphError
from evoquant.graph.functional import make_functional

EXAMPLE_BATCH = 2
_HARMLESS_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"The tensor attributes? .* (was|were) assigned during export",
)


def export_program(model: nn.Module, input_shape: tuple[int, int, int], *, name: str) -> fx.GraphModule:
    """Export a frozen model with a dynamic batch dimension.

    Fused attention becomes two matmuls around a softmax. The graph is functional (no operation writes to its operands),
    takes one tensor and returns one. Values that the model caches in its modules are lost.

    Args:
        model: As ``frozen_copy`` gives it.
        input_shape: Channels, height and width of the images.
        name: Of the model, for messages.

    Raises:
        GraphError: If the model cannot be exported, or does not return one tensor.
    """
    with _explained(name, input_shape):
        exported = _export(model, example_input(model, input_shape))
    program = _plain(exported, name)
    if make_functional(program):
        return program
    with _explained(name, input_shape):
        return _plain(_decomposed(exported), name)


def example_input(model: nn.Module, input_shape: tuple[int, int, int], *, batch: int = EXAMPLE_BATCH) -> Tensor:
    """Reproducible normal noise of shape (batch, channels, height, width) on the device of the model."""
    generator = torch.Generator().manual_seed(0)
    first = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0))
    return torch.randn(batch, *input_shape, generator=generator).to(first.device)


def frozen_copy(model: nn.Module, *, name: str) -> nn.Module:
    """An independent copy in evaluation mode and single precision, whose parameters take no gradients.

    Raises:
        GraphError: If the model cannot be copied.
    """
    try:
        inner = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        message = f"Model '{name}' cannot be copied ({error}). Give a module that copy.deepcopy accepts."
        raise GraphError(message) from error
    return inner.eval().float().requires_grad_(False)


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad(), _no_fast_path():
        return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _decomposed(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Trace the program once more: slow, but removes every write and splits every fused operation."""
    with torch.no_grad():
        functional: torch.export.ExportedProgram = exported.run_decompositions(_decompositions())
    return functional


def _plain(exported: torch.export.ExportedProgram, name: str) -> fx.GraphModule:
    """The program without guards and without the checks of its inputs."""
    with _quiet():
        captured = exported.module(check_guards=False)
    _single_output(captured.graph, name)
    captured.graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(captured, captured.graph, class_name="CapturedProgram").eval()


@contextmanager
def _explained(name: str, input_shape: tuple[int, int, int]) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, LookupError) as error:
        raise GraphError(_explain(name, (EXAMPLE_BATCH, *input_shape), error)) from error


def _explain(name: str, shape: tuple[int, ...], error: BaseException) -> str:
    cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "specialized it to be a constant" in str(error):
        advice = "Its forward fixes the batch size, for example by len(x): use x.shape[0] instead."
    else:
        advice = (
            "Its forward must take one image tensor, accept any batch size, and not branch in Python on the values of "
            "tensors: replace data-dependent control flow by torch.where, or give the inner module."
        )
    return f"Model '{name}' cannot be captured for inputs of shape {shape}: {type(error).__name__}: {cause}\n{advice}"


@contextmanager
def _quiet() -> Iterator[None]:
    logged = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _HARMLESS_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logging.disable(logged)


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Keep ``nn.MultiheadAttention`` from its opaque fused inference kernel."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _decompositions() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    aten = torch.ops.aten
    default = torch.export.default_decompositions()
    split = (aten.einsum.default, aten.conv2d.padding, aten.conv1d.padding)
    return {**{op: default[op] for op in split}, aten.scaled_dot_product_attention.default: _attention}


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale·q·kᵀ + mask)·v with the scale on q, as the unfused layers of timm compute it."""
    del dropout_p  # evaluation mode
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (tensor.repeat_interleave(repeats, dim=-3) for tensor in (key, value))
    query = query * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scores = torch.matmul(query, key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, float("-inf"))
        scores = scores + attn_mask
    return torch.matmul(torch.softmax(scores, dim=-1), value)


def _single_output(graph: fx.Graph, name: str) -> None:
    """Unpack the one-element tuple that an exported graph returns."""
    output = next(node for node in graph.nodes if node.op == "output")
    results = output.args[0]
    if not isinstance(results, tuple | list) or len(results) != 1 or not isinstance(results[0], fx.Node):
        count = len(results) if isinstance(results, tuple | list) else 0
        raise GraphError(f"Model '{name}' must return one tensor of logits, but returns {count} values.")
    output.args = (results[0],)
