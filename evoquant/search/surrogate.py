"""A predictor of an objective from genes: an additive prior, corrected by a Gaussian process, with its uncertainty."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import norm, rankdata

from evoquant.search.additive import AdditiveModel
from evoquant.search.domain import Floats, Genes, GenomeDomain

_DIGITS = 9
"""Predictions are rounded to so many digits, so that the order of candidates does not hang on the last bit."""

_LENGTHS = (0.5, 1.0, 2.0)
_LINEAR_SHARES = (0.3, 0.7, 0.95)
_NOISES = (1e-4, 1e-2, 1e-1)
_HEAVY_TAIL = 4.0


@dataclass(frozen=True)
class GeneFeatures:
    """Genes as numbers: for each axis of each group its relative height and which value it is.

    Attributes:
        domain: The genomes.
        weights: Importance of each group; a group that matters more moves genomes further apart.
    """

    domain: GenomeDomain
    weights: Floats

    @classmethod
    def of(cls, domain: GenomeDomain, prior: AdditiveModel | None) -> Self:
        """Features whose groups weigh as much as the root of their importance in the prior, all alike without one."""
        importance = np.ones(domain.n_groups) if prior is None else prior.importance
        return cls(domain, np.clip(np.sqrt(importance), 0.2, 5.0))

    def __call__(self, genomes: Genes) -> Floats:
        """Features of shape (genomes, features)."""
        gene, value, height_scale, value_scale = self._columns
        heights = genomes * height_scale
        values = (genomes[:, gene] == value) * value_scale
        return np.asarray(np.concatenate([heights, values], axis=1), dtype=np.float64)

    @cached_property
    def _columns(self) -> tuple[Genes, Genes, Floats, Floats]:
        """Gene and value of each indicator, then the factors of heights and of indicators."""
        bounds = self.domain.upper_bounds
        weights = np.repeat(self.weights, self.domain.n_axes) / np.sqrt(max(1.0, float((self.weights**2).sum())))
        gene = np.repeat(np.arange(len(bounds)), bounds + 1)
        value = np.concatenate([np.arange(bound + 1) for bound in bounds.tolist()])
        varies = bounds[gene] > 0
        heights = np.where(bounds > 0, weights / np.maximum(bounds, 1), 0.0)
        return gene[varies], value[varies], heights, 0.5 * weights[gene[varies]]


@dataclass(frozen=True)
class Scale:
    """The scale on which an objective is modelled: as it is, or its logarithm where it has a heavy tail.

    Attributes:
        is_log: Whether it is ``log(y - origin)``.
        origin: Lower end of the logarithm, 0 if it is not used.
    """

    is_log: bool
    origin: float

    @classmethod
    def of(cls, values: Floats) -> Self:
        """The logarithm for positive values whose upper tail is much wider than the lower one."""
        low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
        is_heavy = values.min() >= 0.0 and high - middle > _HEAVY_TAIL * max(middle - low, 1e-300)
        is_wide = values.min() >= 0.0 and high > _HEAVY_TAIL * max(middle, 1e-300)
        return cls(bool(is_heavy or is_wide), -0.01 * float(middle) - 1e-9 if is_heavy or is_wide else 0.0)

    def forward(self, values: Floats) -> Floats:
        """From the objective to the scale."""
        return np.log(np.maximum(values, 0.0) - self.origin) if self.is_log else values

    def backward(self, values: Floats) -> Floats:
        """From the scale to the objective."""
        return np.exp(np.minimum(values, 700.0)) + self.origin if self.is_log else values


@dataclass(frozen=True)
class Prediction:
    """Mean and standard deviation on the scale of the model, each of shape (genomes,)."""

    scale: Scale
    mean: Floats
    deviation: Floats

    def value(self, deviations: float = 0.0) -> Floats:
        """The objective at so many standard deviations above the mean."""
        value = self.scale.backward(self.mean + deviations * self.deviation)
        return np.array([float(f"{number:.{_DIGITS}g}") for number in value.tolist()], dtype=np.float64)

    def probability_below(self, limit: float) -> Floats:
        """Probability that the objective is at most ``limit``."""
        bound = float(self.scale.forward(np.array([limit]))[0])
        return np.asarray(norm.cdf((bound - self.mean) / np.maximum(self.deviation, 1e-12)), dtype=np.float64)


class Surrogate:
    """Gaussian process on genes around a line in the additive prior.

    The kernel is a sum of a linear one, in which groups act independently, and a squared exponential one, in which they
    interact; their shares, the length and the noise maximise the marginal likelihood on a small fixed grid.

    Args:
        features: Turns genes into numbers.
        genomes: Evaluated genomes, shape (genomes, genes).
        values: Their objective, shape (genomes,), finite.
        prior: Predicts the objective up to a line, from probes; None for a constant.
        scale: Scale to model it on; None decides by the values.

    References:
        C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", MIT Press, 2006,
        http://gaussianprocess.org/gpml, algorithm 2.1 and sections 2.7 and 5.4.1.
    """

    def __init__(
        self,
        features: GeneFeatures,
        genomes: Genes,
        values: Floats,
        *,
        prior: AdditiveModel | None = None,
        scale: Scale | None = None,
    ) -> None:
        self.scale = Scale.of(values) if scale is None else scale
        self._features, self._prior = features, prior
        self._inputs = features(genomes)
        target = self.scale.forward(values)
        trend = self._trend(genomes)
        self._target, self._line = target, _fit_line(trend, target)
        self._fitted_line = trend @ self._line
        residual = target - self._fitted_line
        self._deviation = max(float(residual.std()), 1e-9 * max(1.0, float(np.abs(target).max())))
        standard = residual / self._deviation
        products = self._inputs @ self._inputs.T
        self._lengths = np.diag(products).copy()
        squared = _squared_distances(products, self._lengths, self._lengths)
        grid = itertools.product(_LINEAR_SHARES, _LENGTHS, _NOISES)
        fits = [_fit(products, squared, standard, *point) for point in grid]
        self._fit = max(fits, key=lambda fit: fit.likelihood)

    @property
    def loo_rank_correlation(self) -> float:
        """Spearman correlation of the objective with its leave-one-out prediction (around a line fitted to all)."""
        left_out = self._fitted_line + self._deviation * self._fit.left_out
        return rank_correlation(left_out, self._target)

    def predict(self, genomes: Genes) -> Prediction:
        """Mean and uncertainty for repaired genomes, shape (genomes, genes)."""
        inputs = self._features(genomes)
        products, lengths = inputs @ self._inputs.T, (inputs**2).sum(axis=1)
        cross = self._fit.kernel(products, _squared_distances(products, lengths, self._lengths))
        own = self._fit.kernel(lengths, np.zeros(len(inputs)))
        mean = cross @ self._fit.weights
        variance = self._fit.amplitude * (own - (cross * cho_solve(self._fit.factor, cross.T).T).sum(axis=1))
        line = self._trend(genomes) @ self._line
        return Prediction(
            self.scale, line + self._deviation * mean, self._deviation * np.sqrt(np.maximum(variance, 1e-12))
        )

    def _trend(self, genomes: Genes) -> Floats:
        if self._prior is None:
            return np.ones((len(genomes), 1))
        guess = self.scale.forward(self._prior.predict(genomes))
        return np.column_stack([np.ones(len(genomes)), guess])


def rank_correlation(first: Floats, second: Floats) -> float:
    """Spearman correlation with mean ranks for ties; 0 where one side is constant or shorter than 2."""
    if len(first) < 2 or not np.ptp(first) or not np.ptp(second):
        return 0.0
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


@dataclass(frozen=True)
class _Fit:
    linear_share: float
    length: float
    factor: tuple[Floats, bool]
    weights: Floats
    target: Floats
    left_out: Floats
    amplitude: float
    likelihood: float

    def kernel(self, products: Floats, squared: Floats) -> Floats:
        return _kernel(products, squared, self.linear_share, self.length)


def _kernel(products: Floats, squared: Floats, linear_share: float, length: float) -> Floats:
    smooth = np.exp(-0.5 * squared / length**2)
    return np.asarray(linear_share * products + (1.0 - linear_share) * smooth, dtype=np.float64)


def _fit(products: Floats, squared: Floats, target: Floats, linear_share: float, length: float, noise: float) -> _Fit:
    count = len(target)
    kernel = _kernel(products, squared, linear_share, length)
    scale = max(float(np.trace(kernel)) / count, 1e-12)
    covariance = kernel + (noise * scale + 1e-10) * np.eye(count)
    factor = cho_factor(covariance, lower=True)
    weights = cho_solve(factor, target)
    # The amplitude of the whole covariance that maximises the likelihood has a closed form.
    amplitude = max(float(target @ weights) / count, 1e-12)
    log_determinant = 2.0 * float(np.log(np.diag(factor[0])).sum())
    likelihood = -0.5 * (count * np.log(amplitude) + log_determinant)
    inverse_diagonal = np.diag(cho_solve(factor, np.eye(count)))
    left_out = target - weights / inverse_diagonal
    return _Fit(linear_share, length, factor, weights, target, left_out, amplitude, round(float(likelihood), 6))


def _fit_line(trend: Floats, target: Floats) -> Floats:
    """Coefficients of the trend by slightly regularised least squares."""
    penalty = np.diag([0.0, *[1e-6 * len(target)] * (trend.shape[1] - 1)])
    normal = trend.T @ trend + penalty + 1e-12 * np.eye(trend.shape[1])
    return np.asarray(np.linalg.solve(normal, trend.T @ target), dtype=np.float64)


def _squared_distances(products: Floats, first: Floats, second: Floats) -> Floats:
    """From scalar products and squared lengths."""
    return np.asarray(np.maximum(first[:, None] + second[None, :] - 2.0 * products, 0.0), dtype=np.float64)
