"""How good, and how reliably: statistics of repeated evaluations (Huang et al. 2022, section 5).

The functions take columns of any tidy table. What is not finite (an evaluation that diverged, say)
is left out of every number and counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite, log, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LOG_OFFSET = 1e-10  # a float32 loss can reach zero
_NEGLIGIBLE = 1e-12  # of the whole variance: rounding, not variation
_AS_LIKELY = 1e-6  # of deviances: rounding, not another maximum


@dataclass(frozen=True)
class Stability:
    """A mean and where its spread comes from; nan is what these values cannot tell.

    Attributes:
        mean: The model's μ.
        low, high: Its 95% confidence interval.
        meta: Meta-stability: standard deviation between replicates, a's.
        evaluation: Evaluation stability: standard deviation between evaluations of one replicate,
            of b + e.
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


def mixed_effects(
    values: ArrayLike, replicates: ArrayLike, seeds: ArrayLike | None = None
) -> Stability:
    """Fits y_ij = μ + a_i + b_j + e_ij, replicate i, evaluation j, by restricted likelihood.

    The fit is statsmodels' where that is at the likelihood's maximum; else a note says that it is
    not, and the fit is from the likelihood's profile.

    Eq. 9 has no b: what evaluations of one seed (initial weights, batches) have in common. Where
    replicates share seeds the scatter of their means does not show it, and without b μ would look
    surer than it is and a smaller. Where no two share one, or `seeds` is not given, it is Eq. 9.

    The variance of μ is what the replicates' means show, as Hartung and Knapp (2001) have it, plus
    what the seeds' show, each with the t of its own degrees of freedom (Banerjee 1961). Without
    seeds the interval covers μ exactly as often as it says where replicates have equally many
    evaluations; with them it is somewhat too long, as e is in both parts. With one replicate it is
    over its evaluations and speaks of it alone.

    Args:
        values: One number an evaluation, [n].
        replicates: The replicate each belongs to, [n]; anything that can be told apart.
        seeds: The seed of each, [n]; likewise.
    """
    every = np.asarray(values, float)
    kept = np.isfinite(every)
    excluded = int((~kept).sum())
    group = _numbered(replicates, kept)
    seed = np.zeros_like(group) if seeds is None else _numbered(seeds, kept)
    y = every[kept]
    notes = [f"{excluded} of {len(kept)} values are not finite and left out"] if excluded else []
    if not len(y):
        return Stability(nan, nan, nan, nan, nan, 0, 0, excluded, (*notes, "no values"))

    counts = np.bincount(group)
    if len(counts) == 1:
        mean, meta, evaluation = float(y.mean()), nan, _deviation(y)
        notes.append("one replicate: no meta-stability, and the interval speaks of it alone")
        parts = [_of_the_mean(y)]
    elif counts.max() == 1:
        mean, meta, evaluation = float(y.mean()), nan, nan
        notes.append("one evaluation a replicate: meta- and evaluation stability not told apart")
        parts = [_of_the_mean(y)]
    else:
        mean, meta, evaluation, parts, found = _fit(y, group, seed)
        notes += found
    if len(y) == 1:
        notes.append("one value: no interval")
    elif np.ptp(y) == 0:
        notes.append("all values are equal: no variance to estimate")
    half = _half_width(parts)
    return Stability(mean, mean - half, mean + half, meta, evaluation, len(counts), len(y),
                     excluded, tuple(notes))  # fmt: skip


def _fit(values, group, seed) -> tuple[float, float, float, list[tuple[float, int]], list[str]]:
    """μ, standard deviations of a and of b + e, the parts of μ's variance, and notes."""
    centre, scale, counts = values.mean(), values.std(), np.bincount(group)
    if scale < _NEGLIGIBLE * abs(centre) or scale == 0:
        return float(centre), 0.0, 0.0, [(0.0, len(counts) - 1)], []
    z = (values - centre) / scale
    seeds, pairs = len(set(seed)), len(set(zip(group, seed, strict=True)))
    if seeds == pairs or len(z) < seeds + len(counts):
        seed, seeds = np.zeros_like(seed), 1  # none is shared, or nothing would be left for e
    fitted, covariance, between, within, notes = _components(z, group, seed)
    mean, contrasts = fitted[0], _coded(np.arange(seeds))
    effects = contrasts @ fitted[1:]  # b of each seed
    # Weights of the replicates' means by the variance of each, up to a factor.
    means = np.bincount(group, z - effects[seed]) / counts
    weights = 1 / (between + within / counts + _NEGLIGIBLE**2)  # both may be zero
    parts = [((weights * (means - mean) ** 2).sum() / (len(counts) - 1) / weights.sum(),
              len(counts) - 1)]  # fmt: skip
    if seeds > 1:
        parts.append((effects.var(ddof=1) / seeds, seeds - 1))
        errors = np.trace(contrasts @ covariance[1:, 1:] @ contrasts.T)
        within += max(0.0, (effects @ effects - errors) / (seeds - 1))
    return (float(centre + scale * mean), scale * sqrt(between), scale * sqrt(within),
            [(scale**2 * part, freedom) for part, freedom in parts], notes)  # fmt: skip


def _components(z, group, seed):
    """Of values with mean 0 and variance 1, with a at random and b as fixed effects of sum 0.

    The restricted likelihood can have several peaks, of which one may be where a's variance is
    zero. The highest is found in its profile over the ratio of a's variance to e's. Statsmodels'
    mixed model starts there: from its own start it misses the peak in about one unbalanced
    table of eight. It still misses it, by rounding, where the ratio is above 1e10 or so. Where it
    is zero there is nothing to search for.

    Returns:
        μ and the contrasts of b, their covariance, the variances of a and e, and notes.
    """
    design = np.hstack([np.ones((len(z), 1)), _coded(seed)])
    size = design.shape[1]
    whole = np.hstack([design, _coded(group)])
    both, _, rank, _ = np.linalg.lstsq(whole, z, rcond=None)
    left = z - whole @ both
    if left @ left < _NEGLIGIBLE * (len(z) - rank):  # the likelihood has no bound
        between = (_coded(np.arange(group.max() + 1)) @ both[size:]).var(ddof=1)
        between *= between > _NEGLIGIBLE
        return both[:size], np.zeros((size, size)), between, 0.0, []

    profile = partial(_profile, z, design, group)
    ratio = _best_ratio(lambda ratio: profile(ratio)[0])
    deviance, fitted, covariance, within = profile(ratio)
    if not ratio:
        return fitted, covariance, 0.0, within, []
    fit = _mixed_model(z, design, group, ratio)
    if profile(fit.cov_re[0, 0] / fit.scale)[0] < deviance + _AS_LIKELY:
        return fit.fe_params, covariance, fit.cov_re[0, 0], fit.scale, []
    note = "statsmodels misses the restricted likelihood's maximum, which is taken from its profile"
    return fitted, covariance, ratio * within, within, [note]


def _best_ratio(deviance: Callable[[float], float]) -> float:
    """The ratio with the least deviance of all: 0, or from 1e-8 to 1e14."""
    from scipy.optimize import minimize_scalar

    at = lambda power: deviance(10**power)  # noqa: E731
    powers = np.linspace(-8, 14, 67)  # no valley is narrower than a few of these
    depths = np.array([at(power) for power in powers])
    lowest = np.flatnonzero((depths[1:-1] <= depths[:-2]) & (depths[1:-1] <= depths[2:]))
    valleys = [minimize_scalar(at, bounds=powers[[i, i + 2]], method="bounded") for i in lowest]
    return min([0.0, *(10**valley.x for valley in valleys)], key=deviance)


def _profile(z, design, group, ratio: float):
    """The restricted likelihood's maximum at a ratio of a's variance to e's (Harville 1977).

    Returns:
        Minus twice its logarithm, but for a constant; the coefficients, their covariance, and e's
        variance.
    """
    table, counts = np.column_stack([design, z]), np.bincount(group)
    means = np.equal.outer(np.arange(len(counts)), group) @ table / counts[:, None]
    # With the means shrunk by this the rows are uncorrelated, and least squares is likelihood.
    shrunk = means / np.sqrt(1 + ratio * counts)[:, None]
    # NumPy's types have a pair here, whatever the mode.
    root = np.asarray(np.linalg.qr(table - (means - shrunk)[group], mode="r"))
    inverse, free = np.linalg.inv(root[:-1, :-1]), len(z) - design.shape[1]
    within = root[-1, -1] ** 2 / free
    determinants = 2 * np.log(np.abs(np.diag(root)[:-1])).sum() + np.log1p(ratio * counts).sum()
    deviance = free * log(within) + determinants
    return deviance, inverse @ root[:-1, -1], within * inverse @ inverse.T, within


def _mixed_model(z, design, group, ratio: float):
    """Statsmodels' fit from a ratio of a's variance to e's on."""
    from statsmodels.regression.mixed_linear_model import MixedLM, MixedLMParams

    size = design.shape[1]
    start = MixedLMParams.from_components(fe_params=np.zeros(size), cov_re=np.array([[ratio]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on convergence, which is judged by the profile
        return MixedLM(z, design, groups=group).fit(start_params=start, method=["nm"])


def _coded(number) -> np.ndarray:
    """Contrasts of factor levels numbered from 0, whose effects then sum to 0: [n, levels - 1]."""
    levels = np.arange(1, number.max() + 1)
    return np.equal.outer(number, levels) - np.equal.outer(number, [0]).astype(float)


def _numbered(labels: ArrayLike, kept) -> np.ndarray:
    """Whole numbers from 0 on in place of labels."""
    return np.unique(np.asarray(labels)[kept], return_inverse=True)[1]


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
    of other replicates than the next. The variance is that of the mean over pairs and, for each
    side with several replicates, that of the mean over replicates, each with the t of its own
    degrees of freedom (Banerjee 1961). As evaluations' noise enters both, the interval is somewhat
    too long with few evaluations.

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
    mean, half = float(samples[0].mean()), _half_width([_of_the_mean(s) for s in samples])
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


def _of_the_mean(sample) -> tuple[float, int]:
    """Variance of a sample's mean, and its degrees of freedom."""
    return _deviation(sample) ** 2 / len(sample), len(sample) - 1


def _half_width(parts) -> float:
    """Of a 95% interval that covers at least as often (Banerjee 1961).

    Welch and Satterthwaite's covers less where a part has one degree of freedom and comes out
    small: 89% with two replicates that differ more than ten seeds.

    Args:
        parts: What the variance is the sum of, each with its degrees of freedom.
    """
    from scipy.stats import t

    if not all(freedom for _, freedom in parts):
        return nan
    return sqrt(sum(float(t.ppf(0.975, freedom)) ** 2 * part for part, freedom in parts))
