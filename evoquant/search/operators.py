"""Operators on genomes: how two parents mix, how one genome changes, where random genomes come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evoquant.errors import ConfigurationError
from evoquant.search.domain import Genes, GenomeDomain


class Crossover(Protocol):
    """Mixes two genomes."""

    def __call__(self, first: Genes, second: Genes, rng: np.random.Generator) -> tuple[Genes, Genes]:
        """Two children; the parents stay as they are."""


class Mutation(Protocol):
    """Changes one genome."""

    def __call__(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """A changed copy."""


@dataclass(frozen=True, slots=True)
class UniformCrossover:
    """Each group comes from either parent by the toss of a coin; the genes of one group stay together."""

    n_axes: int

    def __call__(self, first: Genes, second: Genes, rng: np.random.Generator) -> tuple[Genes, Genes]:
        """Two children; the parents stay as they are."""
        swap = np.repeat(rng.random(len(first) // self.n_axes) < 0.5, self.n_axes)
        return np.where(swap, second, first), np.where(swap, first, second)


@dataclass(frozen=True, slots=True)
class BlockCrossover:
    """Each block of the network comes whole from either parent, so that what fits together stays together."""

    blocks: tuple[tuple[int, ...], ...]
    n_axes: int

    def __call__(self, first: Genes, second: Genes, rng: np.random.Generator) -> tuple[Genes, Genes]:
        """Two children; the parents stay as they are."""
        swap = np.zeros((len(first) // self.n_axes, self.n_axes), dtype=bool)
        for block, chosen in zip(self.blocks, rng.random(len(self.blocks)) < 0.5, strict=True):
            swap[list(block)] = chosen
        flat = swap.ravel()
        return np.where(flat, second, first), np.where(flat, first, second)


@dataclass(frozen=True)
class StepMutation:
    """One step up or down on an axis of some groups, at least of one.

    Attributes:
        domain: Bounds of the genes.
        rate: Probability that a group changes.
    """

    domain: GenomeDomain
    rate: float

    def __call__(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """A changed copy."""
        sizes = self.domain.upper_bounds.reshape(-1, self.domain.n_axes)
        movable = np.flatnonzero(sizes.any(axis=1))
        changed = genes.reshape(sizes.shape).copy()
        if not len(movable):
            return changed.ravel()
        chosen = movable[rng.random(len(movable)) < self.rate]
        if not len(chosen):
            chosen = rng.choice(movable, size=1)
        for group in chosen.tolist():
            axis = int(rng.choice(np.flatnonzero(sizes[group])))
            changed[group, axis] = _step(changed[group, axis], int(sizes[group, axis]), rng)
        return changed.ravel()


def _step(value: int, largest: int, rng: np.random.Generator) -> int:
    if value in (0, largest):
        return 1 if value == 0 else largest - 1
    return int(value + rng.choice((-1, 1)))


@dataclass(frozen=True)
class RunMutation:
    """The same step on the same axis for a run of neighbouring groups, which saves conversions between them."""

    domain: GenomeDomain

    def __call__(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """A changed copy."""
        groups, axes = self.domain.n_groups, self.domain.n_axes
        bounds = self.domain.upper_bounds.reshape(groups, axes)
        changed = genes.reshape(groups, axes).copy()
        open_axes = np.flatnonzero(bounds.any(axis=0))
        if not len(open_axes):
            return changed.ravel()
        axis = int(rng.choice(open_axes))
        length = int(rng.integers(2, max(3, groups // 3 + 1)))
        start = int(rng.integers(0, max(1, groups - length + 1)))
        run = slice(start, start + length)
        stepped = changed[run, axis] + int(rng.choice((-1, 1)))
        changed[run, axis] = np.clip(stepped, 0, bounds[run, axis])
        return changed.ravel()


@dataclass(frozen=True, slots=True)
class VariationRates:
    """How often each operator is used.

    Attributes:
        crossover: Probability that two parents mix at all.
        block: Share of crossovers that swap whole blocks.
        mutation: Probability that a group changes in a step mutation; None changes two groups on average.
        run: Share of mutations that change a run of groups.
    """

    crossover: float = 0.9
    block: float = 0.5
    mutation: float | None = None
    run: float = 0.25

    def __post_init__(self) -> None:
        for name in ("crossover", "block", "mutation", "run"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigurationError(f"The {name} rate must lie in [0, 1], but got {value}.")


class Variation:
    """Chooses among the operators by their rates."""

    def __init__(self, domain: GenomeDomain, rates: VariationRates) -> None:
        self.rates = rates
        self._uniform = UniformCrossover(domain.n_axes)
        self._block = BlockCrossover(domain.blocks, domain.n_axes)
        rate = min(1.0, 2.0 / domain.n_groups) if rates.mutation is None else rates.mutation
        self._step = StepMutation(domain, rate)
        self._run = RunMutation(domain)

    def cross(self, first: Genes, second: Genes, rng: np.random.Generator) -> tuple[Genes, Genes]:
        """Two children of two parents, which may be copies of them."""
        if rng.random() >= self.rates.crossover:
            return first.copy(), second.copy()
        operator: Crossover = self._block if rng.random() < self.rates.block else self._uniform
        return operator(first, second, rng)

    def mutate(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """A changed copy."""
        operator: Mutation = self._run if rng.random() < self.rates.run else self._step
        return operator(genes, rng)


def random_genomes(domain: GenomeDomain, count: int, rng: np.random.Generator) -> Genes:
    """Random genomes that cover the whole range from coarse to fine, shape (count, genes).

    Genes drawn independently all have about the same average number of bits. Every second genome is therefore drawn
    around a level of its own, from the coarsest to the finest choices.
    """
    genomes = np.empty((count, domain.n_genes), dtype=np.int64)
    for index in range(count):
        genomes[index] = _random_genome(domain, rng, is_levelled=index % 2 == 1)
    return genomes


_CONCENTRATION = 6.0


def _random_genome(domain: GenomeDomain, rng: np.random.Generator, *, is_levelled: bool) -> Genes:
    level = rng.random() if is_levelled else 0.5
    pull = _CONCENTRATION if is_levelled else 0.0
    where = rng.beta(1.0 + pull * level, 1.0 + pull * (1.0 - level), size=domain.n_groups)
    rows = [
        choices[min(int(place * len(choices)), len(choices) - 1)]
        for choices, place in zip(domain.choices, where.tolist(), strict=True)
    ]
    return np.concatenate(rows)


def stacked(seeds: Sequence[Genes], domain: GenomeDomain) -> Genes:
    """Seeds as one array, repaired.

    Raises:
        ConfigurationError: If a seed has the wrong length.
    """
    for index, genes in enumerate(seeds):
        if np.shape(genes) != (domain.n_genes,):
            raise ConfigurationError(
                f"Seed {index}: expected {domain.n_genes} genes, but got an array of shape {np.shape(genes)}."
            )
    if not len(seeds):
        return np.empty((0, domain.n_genes), dtype=np.int64)
    return domain.repair(np.array(seeds, dtype=np.int64))
