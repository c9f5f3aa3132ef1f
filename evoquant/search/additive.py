"""The additive model of a space: what each choice of each group adds to every objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evoquant.errors import ConfigurationError
from evoquant.search.domain import Floats, Genes, GenomeDomain


@dataclass(frozen=True)
class AdditiveModel:
    """Predicts an objective as a sum over groups, from probes of one group at a time.

    Attributes:
        domain: The genomes.
        errors: For each group what each of its choices (in the order of ``domain.choices``) adds to the error.
    """

    domain: GenomeDomain
    errors: tuple[Floats, ...]

    def __post_init__(self) -> None:
        check_table("errors", self.errors, self.domain)

    def predict(self, genomes: Genes) -> Floats:
        """Sum of the errors of repaired genomes, shape (genomes,)."""
        chosen = self.choices_of(genomes)
        return np.asarray(
            sum(table[chosen[:, group]] for group, table in enumerate(self.errors)), dtype=np.float64
        ) * np.ones(len(chosen))

    def choices_of(self, genomes: Genes) -> NDArray[np.int64]:
        """Index into ``domain.choices`` of each group, shape (genomes, groups)."""
        return choice_indices(self.domain, genomes)

    @cached_property
    def importance(self) -> Floats:
        """Spread of the errors of each group, its mean being 1; all 1 if nothing has an error."""
        spread = np.array([float(np.ptp(table)) for table in self.errors])
        return spread / spread.mean() if spread.any() else np.ones(len(spread))


def choice_indices(domain: GenomeDomain, genomes: Genes) -> NDArray[np.int64]:
    """Index into ``domain.choices`` of each group of repaired genomes, shape (genomes, groups).

    Raises:
        ConfigurationError: If a genome is not repaired.
    """
    parts = np.asarray(genomes, dtype=np.int64).reshape(-1, domain.n_groups, domain.n_axes)
    indices = np.empty(parts.shape[:2], dtype=np.int64)
    for group, (strides, codes, order) in enumerate(domain.codes):
        wanted = parts[:, group] @ strides
        found = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        if (codes[found] != wanted).any():
            raise ConfigurationError(f"Group {group}: a genome has genes that stand for no choice; repair it first.")
        indices[:, group] = order[found]
    return indices


def check_table(name: str, table: Sequence[Floats], domain: GenomeDomain) -> None:
    """Refuse a table that has not one finite value for each choice of each group."""
    expected = [len(choices) for choices in domain.choices]
    given = [len(values) for values in table]
    if given != expected:
        raise ConfigurationError(f"{name}: expected {expected} values by group, but got {given}.")
    if not all(np.isfinite(values).all() for values in table):
        raise ConfigurationError(f"{name}: every value must be finite.")
