"""Ranges of q and k that keep attention scores alike and in their order.

Each range is set with the other operand in floating point. What counts is which key of two a query prefers, before the
softmax: differences of scores, for random pairs of keys.

References:
    Z. Liu et al., "Post-Training Quantization for Vision Transformer", NeurIPS 2021, https://arxiv.org/abs/2106.14156,
    equations 7 to 9. The hinge begins at zero here: after the softmax over many keys differences are far below any
    fixed margin, and every pair would count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from evoquant.calibrate.fisher import WITH_HEADS
from evoquant.graph import CapturedModel
from evoquant.quant.lattice import Lattice
from evoquant.types import Role

IMAGES = 8
ROWS = 32
"""Queries kept of each image and head."""
PAIRS = 128
"""Pairs of keys that every query compares."""
ORDER_WEIGHT = 1.0
"""Weight of the order beside similarity."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreSample:
    """The operands of one product q·kᵀ on a few images.

    Attributes:
        query: (images, heads, queries, channels).
        key: (images, heads, channels, keys).
        first: Keys that are compared, (pairs,).
        second: With these.
    """

    query: Tensor
    key: Tensor
    first: Tensor
    second: Tensor

    def operand(self, index: int) -> ScoreOperand:
        """The query (0) or the key (1), with what it is multiplied by."""
        return ScoreOperand(self, index)

    def differences(self, query: Tensor, key: Tensor) -> Tensor:
        """By how much each query prefers the first key of a pair, (images, heads, queries, pairs)."""
        return query @ (key[..., self.first] - key[..., self.second])


@dataclass(frozen=True, slots=True, eq=False)
class ScoreOperand:
    """One operand of a product q·kᵀ, to judge its quantizers by; the other one stays as it is."""

    sample: ScoreSample
    index: int

    @property
    def pooled(self) -> ScoreOperand:
        """All heads with one range."""
        return self

    @property
    def heads(self) -> list[ScoreOperand]:
        """Each head alone."""
        sample = self.sample
        parts = zip(torch.split(sample.query, 1, 1), torch.split(sample.key, 1, 1), strict=True)
        return [ScoreOperand(replace(sample, query=query, key=key), self.index) for query, key in parts]

    def costs(self, candidates: Iterable[tuple[Lattice, float]]) -> list[float]:
        """One less the cosine of the differences of scores, plus the weighted share of them that change their sign."""
        operands = [self.sample.query, self.sample.key]
        exact = self.sample.differences(*operands)
        norm, total = exact.norm(), exact.abs().sum()
        costs = []
        for lattice, scale in candidates:
            found = list(operands)
            found[self.index] = lattice.nearest_(operands[self.index] / scale).mul_(scale)
            differences = self.sample.differences(*found)
            similarity = (exact * differences).sum() / (norm * differences.norm()).clamp(min=1e-30)
            inverted = (-exact.sign() * differences).clamp_(min=0.0).sum() / total.clamp(min=1e-30)
            costs.append(float(1.0 - similarity + ORDER_WEIGHT * inverted))
        return costs


def sample_scores(captured: CapturedModel, images: Tensor, *, seed: int = 0) -> Mapping[str, ScoreSample]:
    """The operands of every product q·kᵀ, by operation.

    Args:
        captured: The floating-point model.
        images: Calibration images; the first ``IMAGES`` are used.
        seed: Of the choice of queries and pairs.
    """
    watch = _Watch(captured, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        watch.run(images[:IMAGES])
    return watch.found


class _Watch(fx.Interpreter):
    def __init__(self, captured: CapturedModel, generator: torch.Generator) -> None:
        super().__init__(captured.program)
        self._ops = {op.node: op for op in captured.graph.ops if op.role is Role.ATTENTION_QK}
        self._generator = generator
        self.found: dict[str, ScoreSample] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - a node may compute anything
        """Compute a node, and keep its operands if it compares queries with keys."""
        op = self._ops.get(n.name)
        if op is not None:
            (query, key, *_), _ = self.fetch_args_kwargs_from_env(n)
            self.found[op.name] = self._sample(query, key)
        return super().run_node(n)

    def _sample(self, query: Tensor, key: Tensor) -> ScoreSample:
        if query.ndim != WITH_HEADS:
            query, key = query[:, None], key[:, None]
        rows = torch.randperm(query.shape[2], generator=self._generator)[:ROWS]
        first, second = torch.randint(key.shape[-1], (2, PAIRS), generator=self._generator)
        return ScoreSample(query[:, :, rows].contiguous(), key.contiguous(), first, second)
