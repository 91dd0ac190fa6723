"""Statistics: known parameters come back, closed forms agree, what cannot be told is said."""

from math import inf, isnan, nan

import numpy as np
import pytest

from l2o.reports.stability import (
    mixed_effects,
    optimization_stability,
    paired_difference,
)


def simulated(generator, replicates, repeats, meta, evaluation):
    """A balanced table around μ = -2: values [n] and their replicates [n]."""
    a = meta * generator.normal(size=(replicates, 1))
    e = evaluation * generator.normal(size=(replicates, repeats))
    return (a + e - 2).ravel(), np.repeat(np.arange(replicates), repeats)


def analysis_of_variance(values, replicates):
    """Restricted maximum likelihood in closed form, of a balanced table."""
    table = values.reshape(replicates.max() + 1, -1)
    k, m = table.shape
    means = table.mean(1)
    between = m * means.var(ddof=1)
    within = table.var(axis=1, ddof=1).mean()
    half = {3: 4.302652730, 8: 2.364624252}[k] * np.sqrt(between / (k * m))
    if between <= within:
        return 0.0, table.std(ddof=1), half
    return np.sqrt((between - within) / m), np.sqrt(within), half


def test_200_simulated_tables_give_their_parameters_back():
    generator = np.random.default_rng(0)
    fits = [mixed_effects(*simulated(generator, 4, 3, 0.3, 0.2)) for _ in range(200)]
    covered = np.mean([fit.low < -2 < fit.high for fit in fits])
    # Three standard deviations of a share of 200 draws at 0.95.
    assert 0.904 < covered < 0.996
    assert np.mean([fit.mean for fit in fits]) == pytest.approx(-2, abs=0.05)
    assert np.mean([fit.meta**2 for fit in fits]) == pytest.approx(0.09, rel=0.2)
    assert np.mean([fit.evaluation**2 for fit in fits]) == pytest.approx(0.04, rel=0.2)


@pytest.mark.parametrize("meta", [0.0, 0.05, 1.0, 100.0])
@pytest.mark.parametrize("replicates", [3, 8])
def test_balanced_tables_agree_with_the_closed_form(meta, replicates):
    generator = np.random.default_rng(replicates)
    for _ in range(5):
        values, groups = simulated(generator, replicates, 3, meta, 0.1)
        fit = mixed_effects(values, groups)
        between, within, half = analysis_of_variance(values, groups)
        assert fit.mean == pytest.approx(values.mean())
        assert fit.meta == pytest.approx(between, rel=2e-3, abs=1e-6)
        assert fit.evaluation == pytest.approx(within, rel=2e-3)
        assert (fit.high - fit.low) / 2 == pytest.approx(half, rel=1e-4)


def simulated_crossed(generator, replicates, repeats, meta, shared, evaluation):
    """As `simulated`, with what evaluations of one seed share; and their seeds [n]."""
    values, groups = simulated(generator, replicates, repeats, meta, evaluation)
    seeds = np.tile(np.arange(repeats), replicates)
    return values + shared * generator.normal(size=repeats)[seeds], groups, seeds


def test_200_simulated_tables_of_shared_seeds_give_their_parameters_back():
    """As `evaluate.py` makes them: seeds differ more than replicates, and all have the same."""
    generator = np.random.default_rng(0)
    tables = [simulated_crossed(generator, 4, 3, 0.1, 0.3, 0.1) for _ in range(200)]
    fits = [mixed_effects(*table) for table in tables]
    covered = np.mean([fit.low < -2 < fit.high for fit in fits])
    assert 0.904 < covered < 0.996
    assert np.mean([fit.mean for fit in fits]) == pytest.approx(-2, abs=0.05)
    assert np.mean([fit.meta**2 for fit in fits]) == pytest.approx(0.01, rel=0.2)
    assert np.mean([fit.evaluation**2 for fit in fits]) == pytest.approx(0.1, rel=0.2)


def test_two_replicates_are_not_made_surer_than_they_are():
    generator = np.random.default_rng(0)
    fits = [mixed_effects(*simulated_crossed(generator, 2, 7, 1.0, 0.5, 0.1)) for _ in range(400)]
    assert 0.925 < np.mean([fit.low < -2 < fit.high for fit in fits]) < 0.995


@pytest.mark.parametrize("replicates", [3, 8])
def test_balanced_tables_of_shared_seeds_agree_with_the_closed_form(replicates):
    generator = np.random.default_rng(replicates)
    for _ in range(5):
        values, groups, seeds = simulated_crossed(generator, replicates, 5, 1.0, 2.0, 0.1)
        fit, table = mixed_effects(values, groups, seeds), values.reshape(replicates, 5)
        means, others = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
        within = ((table - means - others + table.mean()) ** 2).sum() / (replicates - 1) / 4
        assert fit.mean == pytest.approx(values.mean())
        assert fit.meta == pytest.approx(np.sqrt(means.var(ddof=1) - within / 5), rel=2e-3)
        shared = others.var(ddof=1) - within / replicates
        assert fit.evaluation == pytest.approx(np.sqrt(shared + within), rel=2e-3)
        # Of the same kind as a difference to what does not vary at all.
        nothing = {(0, j): 0.0 for j in range(5)}
        difference = paired_difference(pairs(table), nothing)
        assert (fit.low, fit.high) == pytest.approx((difference.low, difference.high), rel=1e-3)


def test_seeds_that_no_two_replicates_share_change_nothing():
    values, groups = simulated(np.random.default_rng(0), 4, 3, 0.3, 0.2)
    assert mixed_effects(values, groups, np.arange(12)) == mixed_effects(values, groups)


def test_a_table_that_is_the_sum_of_its_replicates_and_seeds():
    table = np.array([[1.0], [2.0], [6.0]]) + [10.0, 20.0]
    groups, seeds = np.repeat(np.arange(3), 2), np.tile(np.arange(2), 3)
    fit = mixed_effects(table.ravel(), groups, seeds)
    assert fit.mean == pytest.approx(18)
    assert fit.meta == pytest.approx(np.sqrt(7)) and fit.evaluation == pytest.approx(np.sqrt(50))


def test_replicates_that_are_alike_on_every_seed():
    fit = mixed_effects([1.0, 2.0, 1.0, 2.0], [1, 1, 2, 2], [0, 1, 0, 1])
    assert (fit.mean, fit.meta) == (1.5, 0) and fit.evaluation == pytest.approx(np.sqrt(0.5))
    # Two seeds tell what they tell, however many replicates say the same.
    assert fit.high - 1.5 == pytest.approx(12.70620474 / 2)


def brute_force(values, groups, seeds):
    """μ and the standard deviations of a and of b + e where the restricted likelihood is highest.

    From the definition: dense covariances, at ratios of a's variance to e's of 0 and of every
    fourth of a decade, then of every 200th about the best.
    """
    design = np.equal.outer(seeds, np.unique(seeds)).astype(float)  # μ + b of each seed
    count, levels = design.shape

    def at(power):
        ratio = 10.0**power
        inverse = np.linalg.inv(np.eye(count) + ratio * np.equal.outer(groups, groups))
        errors = np.linalg.inv(design.T @ inverse @ design)
        fitted = errors @ design.T @ inverse @ values
        left = values - design @ fitted
        within = left @ inverse @ left / (count - levels)
        logarithms = np.linalg.slogdet(inverse)[1] + np.linalg.slogdet(errors)[1]
        deviance = (count - levels) * np.log(within) - logarithms
        return deviance, ratio * within, within, fitted, within * errors

    best = min([-inf, *np.arange(-5, 7, 0.25)], key=lambda power: at(power)[0])
    if best > -inf:
        best = min(np.arange(best - 0.25, best + 0.25, 0.005), key=lambda power: at(power)[0])
    _, between, within, fitted, errors = at(best)
    if levels > 1:
        noise = np.trace((np.eye(levels) - 1 / levels) @ errors) / (levels - 1)
        within += max(0, fitted.var(ddof=1) - noise)
    return fitted.mean(), np.sqrt(between), np.sqrt(within)


@pytest.mark.parametrize("shared", [False, True])
def test_unbalanced_tables_against_a_brute_force_search(shared):
    """Of few and many replicates and evaluations, whose variance is nothing or nearly all."""
    generator = np.random.default_rng(9 if shared else 45)  # some that were missed
    zero = 0
    for k in range(30):
        sizes = generator.integers(1, generator.choice([3, 6, 11]), generator.integers(2, 10))
        sizes[0] = sizes.max() + 1
        groups = np.repeat(np.arange(len(sizes)), sizes)
        values = np.sqrt((0, 0.1, 1, 10, 1e4)[k % 5]) * generator.normal(size=len(sizes))[groups]
        values += generator.normal(size=len(groups)) - 2
        seeds = np.concatenate([generator.permutation(sizes[0])[:size] for size in sizes]) * shared
        if len(groups) < len(sizes) + sizes[0]:
            seeds *= 0  # nothing would be left for e
        values += generator.normal(size=sizes[0])[seeds]
        fit = mixed_effects(values, groups, seeds)
        mean, meta, evaluation = brute_force(values, groups, seeds)
        assert fit.mean == pytest.approx(mean, abs=1e-2 * (meta + evaluation)), k
        assert fit.meta == pytest.approx(meta, rel=5e-3, abs=1e-3), k
        assert fit.evaluation == pytest.approx(evaluation, rel=5e-3), k
        assert not fit.notes
        zero += meta == 0
    assert 3 < zero < 15


def test_a_likelihood_that_falls_from_zero_to_rise_higher():
    values = [-1.59, -0.91, -0.17, -1.15, -0.5, -0.4, -0.1, -0.67, -0.26, -0.63, 0.03, -0.88]
    fit = mixed_effects(values, np.repeat([0, 1, 2], (1, 6, 5)))
    assert fit.mean == pytest.approx(-0.775, abs=5e-4)
    assert fit.meta == pytest.approx(0.462, abs=5e-4)


def test_what_statsmodels_misses_is_right_and_said():
    """Evaluations so much closer than replicates that it comes to rounding."""
    noted = 0
    for k in range(20):
        values, groups = simulated(np.random.default_rng(k), 3, 3, 1.0, 5e-6)
        fit = mixed_effects(values, groups)
        between, within, _ = analysis_of_variance(values, groups)
        assert fit.meta == pytest.approx(between, rel=2e-3)
        assert fit.evaluation == pytest.approx(within, rel=2e-3)
        noted += any("statsmodels" in note for note in fit.notes)
    assert noted


def test_shift_and_scale_pass_through():
    values, groups = simulated(np.random.default_rng(0), 4, 3, 0.3, 0.2)
    fit, other = mixed_effects(values, groups), mixed_effects(1e-6 * values + 5, groups)
    assert other.mean == pytest.approx(1e-6 * fit.mean + 5)
    assert other.meta == pytest.approx(1e-6 * fit.meta, rel=1e-4)
    assert other.evaluation == pytest.approx(1e-6 * fit.evaluation, rel=1e-4)
    assert other.high - other.low == pytest.approx(1e-6 * (fit.high - fit.low), rel=1e-4)


def test_one_replicate_has_no_meta_stability():
    fit = mixed_effects([1.0, 2.0, 3.0], ["a", "a", "a"])
    assert isnan(fit.meta) and fit.evaluation == 1.0
    assert fit.high == pytest.approx(2 + 4.302652730 / np.sqrt(3))
    assert any("one replicate" in note for note in fit.notes)


def test_one_evaluation_a_replicate_does_not_tell_the_two_apart():
    fit = mixed_effects([1.0, 2.0, 3.0], [1, 2, 3])
    assert isnan(fit.meta) and isnan(fit.evaluation)
    assert fit.high == pytest.approx(2 + 4.302652730 / np.sqrt(3))
    assert any("not told apart" in note for note in fit.notes)


def test_no_variance():
    fit = mixed_effects([0.1] * 6, [1, 1, 2, 2, 3, 3])
    assert (fit.meta, fit.evaluation, fit.high - fit.low) == (0, 0, 0)
    assert any("no variance" in note for note in fit.notes)


def test_no_variance_within_replicates():
    fit = mixed_effects([1.0, 1.0, 2.0, 3.0, 3.0], [1, 1, 2, 3, 3])
    assert fit.mean == pytest.approx(2) and fit.meta == pytest.approx(1)
    assert fit.evaluation == 0
    assert fit.high - 2 == pytest.approx(4.302652730 / np.sqrt(3))


def test_values_that_are_not_finite_are_left_out_and_counted():
    values, groups = simulated(np.random.default_rng(0), 3, 3, 0.3, 0.2)
    with_others = mixed_effects([inf, *values, nan], [0, *groups, 9])
    fit = mixed_effects(values, groups)
    assert (with_others.excluded, with_others.evaluations, with_others.replicates) == (2, 9, 3)
    assert (with_others.mean, with_others.meta) == (fit.mean, fit.meta)
    assert any("2 of 11" in note for note in with_others.notes)


@pytest.mark.parametrize("values", [[], [inf], [nan, inf]])
def test_nothing_finite(values):
    fit = mixed_effects(values, [1] * len(values))
    assert isnan(fit.mean) and isnan(fit.low)
    assert fit.evaluations == 0 and fit.excluded == len(values)


def test_one_value_has_no_interval():
    fit = mixed_effects([3.0], [1])
    assert fit.mean == 3 and isnan(fit.low) and isnan(fit.high)


def test_optimization_stability_against_a_direct_sum():
    losses = np.exp(np.random.default_rng(0).normal(size=9))
    offsets = np.arange(-8, 9)
    kernel = np.exp(-(offsets**2) / 8)
    kernel /= kernel.sum()
    edges = np.clip(np.arange(9)[:, None] + offsets, 0, 8)
    smooth = (np.log(losses)[edges] * kernel).sum(1)
    expected = np.std(np.log(losses) - smooth)
    assert optimization_stability(losses) == pytest.approx(expected, rel=1e-6)
    assert optimization_stability(100 * losses) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, inf], [1.0, nan, 2.0]])
def test_optimization_stability_needs_two_finite_losses(losses):
    assert isnan(optimization_stability(losses))


def pairs(table):
    return {(i, j): value for i, row in enumerate(table) for j, value in enumerate(row)}


def test_paired_difference_of_single_replicates_is_students():
    first, second = [[1.0, 2.0, 6.0]], [[0.0, 3.0, 2.0]]
    difference = paired_difference(pairs(first), pairs(second))
    # Differences 1, -1, 4: mean 4/3, variance 19/3.
    assert difference.mean == pytest.approx(4 / 3)
    assert difference.high - difference.mean == pytest.approx(4.302652730 * np.sqrt(19 / 9))


def test_pairs_take_out_what_they_share():
    generator = np.random.default_rng(0)
    shared, own = generator.normal(size=5), 0.01 * generator.normal(size=(2, 5))
    difference = paired_difference(pairs([shared + own[0]]), pairs([shared + own[1] + 1]))
    assert -1.05 < difference.low < -1 < difference.high < -0.95


@pytest.mark.parametrize(
    ("replicates", "seeds", "meta", "own", "noise"),
    [(4, 5, 0.3, 0.0, 0.2), (2, 10, 1.0, 0.5, 0.1), (2, 3, 1.0, 0.0, 0.1)],
)
def test_paired_differences_cover_at_the_nominal_rate(replicates, seeds, meta, own, noise):
    """Few replicates too, which differ more than seeds do."""
    generator = np.random.default_rng(5)
    covered = []
    for _ in range(1000):
        shared = generator.normal(size=seeds)
        first = meta * generator.normal(size=(replicates, 1)) + own * generator.normal(size=seeds)
        first = first + noise * generator.normal(size=(replicates, seeds))
        second = noise * generator.normal(size=(1, seeds))
        difference = paired_difference(pairs(first + shared), pairs(second + shared))
        covered.append(difference.low < 0 < difference.high)
    assert 0.935 < np.mean(covered) < 0.985


def test_missing_pairs_are_left_out_and_counted():
    first = {(1, "a"): 1.0, (1, "b"): 2.0, (1, "c"): inf, (1, "d"): 9.0}
    second = {(1, "a"): 0.0, (1, "b"): 0.0, (1, "c"): 0.0}
    difference = paired_difference(first, second)
    assert (difference.pairs, difference.unpaired, difference.mean) == (2, 2, 1.5)


def test_a_pair_of_fewer_replicates_than_another_is_left_out():
    """Replicates far apart: the mean of what is there of each pair would be of other ones."""
    first = pairs([[1.0, 2.0, 3.0], [11.0, 12.0, 13.0]])
    second = pairs([[0.0, 0.0, 0.0]])
    whole = paired_difference(first, second)
    assert (whole.pairs, whole.unpaired, whole.mean) == (3, 0, 7)
    for value in (None, inf):
        first[1, 0] = value
        part = paired_difference({k: v for k, v in first.items() if v is not None}, second)
        assert (part.pairs, part.unpaired, part.mean) == (2, 1, 7.5)


def test_no_pairs_and_one_pair():
    nothing = paired_difference({(1, "a"): 1.0}, {(1, "b"): 1.0})
    assert nothing.pairs == 0 and isnan(nothing.mean)
    single = paired_difference({(1, "a"): 1.0}, {(1, "a"): 3.0})
    assert single.mean == -2 and isnan(single.low)


def test_equal_differences_have_no_variance():
    difference = paired_difference(pairs([[1.0, 2.0]]), pairs([[0.0, 1.0]]))
    assert (difference.low, difference.mean, difference.high) == (1, 1, 1)
