"""What a search knows of a space: bounds, choices of each group, blocks, repair and the name of a phenotype."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evoquant.errors import ConfigurationError
from evoquant.space import SearchSpace

Genes: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class GenomeDomain:
    """Genomes of integers in groups of ``n_axes`` genes.

    Attributes:
        upper_bounds: Largest value of each gene, shape (groups · n_axes); the smallest is 0.
        n_axes: Genes of one group.
        choices: For each group its distinct choices, shape (choices, n_axes), coarsest first.
        blocks: Positions of the groups that belong together, block by block.
        repair: The genome that stands for what another one means; idempotent, for arrays of genomes too.
        phenotype: The name of what a genome means; two genomes with the same one need only one evaluation.
    """

    upper_bounds: Genes
    n_axes: int
    choices: tuple[Genes, ...]
    blocks: tuple[tuple[int, ...], ...]
    repair: Callable[[Genes], Genes]
    phenotype: Callable[[Genes], str]

    @classmethod
    def of_space(cls, space: SearchSpace) -> Self:
        """The domain of a search space."""
        return cls(
            upper_bounds=space.upper_bounds,
            n_axes=space.n_genes // len(space.groups),
            choices=tuple(space.canonical_genes(index) for index in range(len(space.groups))),
            blocks=space.blocks,
            repair=space.repair,
            phenotype=space.phenotype_hash,
        )

    @classmethod
    def grid(cls, sizes: Sequence[int], *, n_axes: int = 1) -> Self:
        """A domain in which every genome is legal and means itself, with each group a block.

        Args:
            sizes: Number of values of each gene.
            n_axes: Genes of one group.

        Raises:
            ConfigurationError: If the genes cannot be parted into groups, or one has no value.
        """
        if not sizes or len(sizes) % n_axes or min(sizes) < 1:
            raise ConfigurationError(f"Expected positive sizes in groups of {n_axes}, but got {list(sizes)}.")
        groups = [sizes[start : start + n_axes] for start in range(0, len(sizes), n_axes)]
        choices = tuple(np.array(list(itertools.product(*map(range, group))), dtype=np.int64) for group in groups)
        return cls(
            upper_bounds=np.array(sizes, dtype=np.int64) - 1,
            n_axes=n_axes,
            choices=choices,
            blocks=tuple((index,) for index in range(len(groups))),
            repair=lambda genes: genes,
            phenotype=lambda genes: ",".join(map(str, genes.tolist())),
        )

    @cached_property
    def codes(self) -> tuple[tuple[Genes, Genes, Genes], ...]:
        """For each group what makes one number of its genes, those of its choices, ascending, and their positions."""
        found = []
        for bounds, choices in zip(self.upper_bounds.reshape(-1, self.n_axes), self.choices, strict=True):
            strides = np.concatenate([np.cumprod((bounds + 1)[::-1])[::-1][1:], [1]])
            codes = choices @ strides
            order = np.argsort(codes)
            found.append((strides, codes[order], order))
        return tuple(found)

    @property
    def n_genes(self) -> int:
        """Length of a genome."""
        return len(self.upper_bounds)

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self.choices)

    @property
    def size_log10(self) -> float:
        """Decimal logarithm of the number of genomes that mean different things."""
        return math.fsum(math.log10(len(choices)) for choices in self.choices)

    def everything(self) -> Iterator[Genes]:
        """All genomes that mean different things, in a fixed order."""
        for rows in itertools.product(*self.choices):
            yield np.concatenate(rows)
