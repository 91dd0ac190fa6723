"""How good, and how reliably: statistics of repeated evaluations (Huang et al. 2022, section 5).

The functions take columns of any tidy table. What is not finite (an evaluation that diverged, say)
is left out of every number and counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LOG_OFFSET = 1e-10  # a float32 loss can reach zero
_NEGLIGIBLE = 1e-12  # of the whole variance: rounding, not variation


@dataclass(frozen=True)
class Stability:
    """A mean and where its spread comes from; nan is what these values cannot tell.

    Attributes:
        mean: The model's μ.
        low, high: Its 95% confidence interval.
        meta: Meta-stability: standard deviation between replicates, a's.
        evaluation: Evaluation stability: standard deviation between evaluations of one replicate,
            e's.
        replicates: Number of replicates.
        evaluations: Number of values.
        excluded: Number of values that were not finite.
        notes: What a reader must know, a sentence each.
    """

    mean: float
    low: float
    high: float
    meta: float
    evaluation: float
    replicates: int
    evaluations: int
    excluded: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A paired difference, first minus second; nan is what the pairs cannot tell.

    Attributes:
        mean: Over the pairs.
        low, high: Its 95% confidence interval.
        pairs: Number of pairs.
        unpaired: Number of pairs that are left out, as one side lacks a value.
    """

    mean: float
    low: float
    high: float
    pairs: int
    unpaired: int = 0


def mixed_effects(values: ArrayLike, replicates: ArrayLike) -> Stability:
    """Fits y_ij = μ + a_i + e_ij, replicate i, evaluation j (Eq. 9), by restricted likelihood.

    The interval is Hartung and Knapp's (2001): μ ± t s with replicates - 1 degrees of freedom, s
    from how the replicates' means scatter about μ. Where replicates have equally many evaluations
    it covers μ exactly as often as it says, however few they are; a normal distribution's would
    be too short. With one replicate the interval is over its evaluations and speaks of it alone.

    Args:
        values: One number an evaluation, [n].
        replicates: The replicate each belongs to, [n]; anything that can be told apart.
    """
    values = np.asarray(values, float)
    kept = np.isfinite(values)
    excluded = int((~kept).sum())
    _, group = np.unique(np.asarray(replicates)[kept], return_inverse=True)
    values = values[kept]
    notes = [f"{excluded} of {len(kept)} values are not finite and left out"] if excluded else []
    if not len(values):
        return Stability(nan, nan, nan, nan, nan, 0, 0, excluded, (*notes, "no values"))

    counts = np.bincount(group)
    if len(counts) == 1:
        mean, meta, evaluation = float(values.mean()), nan, _deviation(values)
        notes.append("one replicate: no meta-stability, and the interval speaks of it alone")
        error, freedom = evaluation / sqrt(len(values)), len(values) - 1
    elif counts.max() == 1:
        mean, meta, evaluation = float(values.mean()), nan, nan
        notes.append("one evaluation a replicate: meta- and evaluation stability not told apart")
        error, freedom = _deviation(values) / sqrt(len(values)), len(values) - 1
    else:
        mean, meta, evaluation, error = _fit(values, group, counts)
        freedom = len(counts) - 1
    if len(values) == 1:
        notes.append("one value: no interval")
    elif np.ptp(values) == 0:
        notes.append("all values are equal: no variance to estimate")
    half = _quantile(freedom) * error
    return Stability(mean, mean - half, mean + half, meta, evaluation, len(counts), len(values),
                     excluded, tuple(notes))  # fmt: skip


def _fit(values, group, counts) -> tuple[float, float, float, float]:
    """μ, standard deviations of a and e, standard error of μ."""
    centre, scale = values.mean(), values.std()
    if scale < _NEGLIGIBLE * abs(centre) or scale == 0:
        return float(centre), 0.0, 0.0, 0.0
    z = (values - centre) / scale
    means = np.bincount(group, z) / counts
    mean, between, within = _components(z, group, counts, means)
    # Weights of the means by the variance of each, up to a factor.
    weights = 1 / (between + within / counts)
    error = sqrt((weights * (means - mean) ** 2).sum() / (len(counts) - 1) / weights.sum())
    return (float(centre + scale * mean), scale * sqrt(between), scale * sqrt(within),
            scale * error)  # fmt: skip


def _components(z, group, counts, means) -> tuple[float, float, float]:
    """μ and the variances of a and e, of values with mean 0 and variance 1.

    Statsmodels' own starting point leaves its optimizers stranded where a's variance is near zero
    or far above e's. So zero is decided by the sign of the restricted likelihood's slope there,
    and the search starts at the analysis of variance's estimate, which is the solution itself
    where replicates have equally many evaluations.
    """
    n, k = len(z), len(counts)
    between = (counts * means**2).sum() / (k - 1)
    within = ((z - means[group]) ** 2).sum() / (n - k)
    if within < _NEGLIGIBLE:
        return float(means.mean()), float(means.var(ddof=1)), 0.0
    spread = n - (counts**2).sum() / n
    if ((counts * means) ** 2).sum() <= spread * n / (n - 1):
        return 0.0, 0.0, n / (n - 1)
    ratio = max((between - within) / (spread / (k - 1)) / within, 1e-3)
    return _restricted_likelihood(z, group, ratio)


def _restricted_likelihood(z, group, ratio: float) -> tuple[float, float, float]:
    """μ and the variances of a and e, by statsmodels' mixed model; starts at their ratio."""
    from statsmodels.regression.mixed_linear_model import MixedLM, MixedLMParams

    start = MixedLMParams.from_components(fe_params=np.zeros(1), cov_re=np.array([[ratio]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the boundary, which has been looked at already
        fit = MixedLM(z, np.ones(len(z)), groups=group).fit(start_params=start, method=["nm"])
    return float(fit.fe_params[0]), float(fit.cov_re[0, 0]), float(fit.scale)


def optimization_stability(losses: ArrayLike) -> float:
    """How much a validation loss jumps about from epoch to epoch (Eq. 10).

    Standard deviation of the log loss minus its Gaussian-filtered curve (σ = 2 epochs, edges
    repeated).

    Args:
        losses: One evaluation's validation loss after each epoch, from the first on, [epochs].

    Returns:
        nan if a loss is not finite or below 0, or there are fewer than two.
    """
    from scipy.ndimage import gaussian_filter1d

    losses = np.asarray(losses, float)
    if len(losses) < 2 or not np.isfinite(losses).all() or losses.min() < 0:
        return nan
    curve = np.log(losses + LOG_OFFSET)
    return float(np.std(curve - gaussian_filter1d(curve, sigma=2, mode="nearest")))


def paired_difference(
    first: Mapping[tuple[Any, Any], float],
    second: Mapping[tuple[Any, Any], float],
) -> Difference:
    """Mean of first minus second over the pairs that both have, with its 95% interval.

    Pairs share what makes evaluations alike (problem and seed). Replicates are averaged within a
    pair, so a pair counts only where every replicate of a side has a finite value: else it would be
    of other replicates than the next. The standard error adds the variance of the mean over pairs
    and, for each side with several replicates, that of the mean over replicates; Welch and
    Satterthwaite's degrees of freedom. As evaluations' noise enters both, the interval is somewhat
    too long with few evaluations, never too short.

    Args:
        first, second: A number for each (replicate, pair).
    """
    sides = [_by_pair(side) for side in (first, second)]
    shared = [pair for pair in sides[0] if pair in sides[1]]
    unpaired = len({pair for side in (first, second) for _, pair in side}) - len(shared)
    if not shared:
        return Difference(nan, nan, nan, 0, unpaired)

    means = [np.array([np.mean(list(side[p].values())) for p in shared]) for side in sides]
    samples = [means[0] - means[1]]
    for side in sides:
        replicates: dict[Hashable, list[float]] = {}
        for pair in shared:
            for replicate, value in side[pair].items():
                replicates.setdefault(replicate, []).append(value)
        if len(replicates) > 1:
            samples.append(np.array([np.mean(values) for values in replicates.values()]))
    mean = float(samples[0].mean())
    parts = [(s.var(ddof=1) / len(s), len(s) - 1) for s in samples if len(s) > 1]
    variance = sum(part for part, _ in parts)
    if len(shared) == 1:
        half = nan
    elif variance == 0:
        half = 0.0
    else:
        freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
        half = _quantile(freedom) * sqrt(variance)
    return Difference(mean, mean - half, mean + half, len(shared), unpaired)


def _by_pair(side) -> dict[Hashable, dict[Hashable, float]]:
    """The values by pair and replicate, of the pairs that have all replicates."""
    pairs: dict[Hashable, dict[Hashable, float]] = {pair: {} for _, pair in side}
    for (replicate, pair), value in side.items():
        if isfinite(value):
            pairs[pair][replicate] = value
    every = {replicate for replicate, _ in side}
    return {pair: values for pair, values in pairs.items() if values.keys() == every}


def _deviation(values) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else nan


def _quantile(freedom: float) -> float:
    """Half width of a 95% interval in standard errors, by Student's t distribution."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom)) if freedom > 0 else nan
