"""Statistics: known parameters come back, closed forms agree, what cannot be told is said."""

from math import inf, isnan, nan

import numpy as np
import pytest
from scipy.optimize import minimize

from l2o.evaluation.stability import (
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


def restricted_likelihood(values, groups, meta, evaluation, design=None):
    """Minus the logarithm, from the definition: dense covariance, fixed effects profiled out."""
    design = np.ones((len(values), 1)) if design is None else design
    covariance = evaluation**2 * np.eye(len(values)) + meta**2 * (groups[:, None] == groups)
    inverse = np.linalg.inv(covariance)
    total = design.T @ inverse @ design
    residual = values - design @ np.linalg.solve(total, design.T @ inverse @ values)
    logarithms = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(total)[1]
    return (logarithms + residual @ inverse @ residual) / 2


def test_unbalanced_tables_of_shared_seeds_against_a_direct_search():
    generator = np.random.default_rng(4)
    groups = np.repeat(np.arange(4), (2, 3, 5, 4))
    seeds = np.array([0, 1, 0, 2, 3, 0, 1, 2, 3, 4, 1, 2, 3, 4])
    design = np.equal.outer(seeds, np.arange(5)).astype(float)  # μ + b of each seed
    values = generator.normal(size=4)[groups] + generator.normal(size=5)[seeds] - 2
    values += 0.3 * generator.normal(size=14)
    fit = mixed_effects(values, groups, seeds)
    found = minimize(
        lambda x: restricted_likelihood(values, groups, *np.exp(x), design), [0.0, -1.0],
        method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12},
    )  # fmt: skip
    meta, evaluation = np.exp(found.x)
    covariance = evaluation**2 * np.eye(14) + meta**2 * (groups[:, None] == groups)
    errors = np.linalg.inv(design.T @ np.linalg.solve(covariance, design))
    fitted = errors @ design.T @ np.linalg.solve(covariance, values)
    centring = np.eye(5) - 0.2
    shared = fitted.var(ddof=1) - np.trace(centring @ errors) / 4
    assert fit.mean == pytest.approx(fitted.mean(), rel=1e-3)
    assert fit.meta == pytest.approx(meta, rel=2e-3)
    assert fit.evaluation == pytest.approx(np.sqrt(shared + evaluation**2), rel=2e-3)


def test_unbalanced_tables_are_at_the_restricted_likelihoods_peak():
    generator = np.random.default_rng(3)
    groups = np.repeat(np.arange(4), (1, 2, 4, 5))
    boundary = 0
    for meta in (0.0, 0.0, 0.0, 0.2, 3.0):
        values = meta * generator.normal(size=4)[groups] + 0.1 * generator.normal(size=12)
        fit = mixed_effects(values, groups)
        boundary += fit.meta == 0
        peak = restricted_likelihood(values, groups, fit.meta, fit.evaluation)
        for step in (0.97, 1.03):
            other = restricted_likelihood(values, groups, fit.meta, fit.evaluation * step)
            assert other > peak
            other = restricted_likelihood(
                values, groups, fit.meta * step or abs(step - 1), fit.evaluation
            )
            assert other > peak
    assert 0 < boundary < 5


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
