"""The held-out meta loss and the one without logarithms, against plain recomputation."""

import numpy as np
import pytest
import tensorflow as tf
from made_weights import made_tensors

from l2o.amalgamation.meta import MetaTraining, initial_state
from l2o.amalgamation.unroll import (
    Amalgamation,
    begin,
    run_student,
    truncation,
)
from l2o.problems import Batch
from l2o.rules import SGD, Layout, RNNProp
from l2o.tasks.batches import Stream, batches, held_out

_BATCH, _STEPS, _KEY = 8, 4, (7, 0)


class Quadratic:
    """M(x, theta) = mean |theta - x|^2 - 1, which can be negative."""

    layout = Layout(("weights",), ((3,),))

    def initial(self, seed):
        return np.random.default_rng(seed).normal(size=3), []

    def loss(self, parameters, carried, batch, training):
        return tf.reduce_mean(tf.reduce_sum((parameters - batch.inputs) ** 2, -1)) - 1, carried


def draw(seed: int, shift: float) -> Batch:
    """T batches."""
    inputs = np.random.default_rng(seed).normal(shift, size=(_STEPS, _BATCH, 3))
    return Batch(tf.constant(inputs), tf.zeros((_STEPS, _BATCH), tf.int32))


def losses_by_hand(start, steps, judged, rate) -> tuple[list[float], list[float]]:
    """M(x_i, theta_i) and M(x_i, theta_0) of plain SGD that trains on `steps`."""
    start = parameters = np.array(start)
    along, at_start = [], []
    for x, seen in zip(steps.inputs.numpy(), judged.inputs.numpy(), strict=True):
        along.append(((parameters - seen) ** 2).sum(-1).mean() - 1)
        at_start.append(((start - seen) ** 2).sum(-1).mean() - 1)
        parameters = parameters - rate * 2 * (parameters - x).mean(0)
    return along, at_start


@pytest.mark.parametrize("recompute", [0, 2])
def test_losses_are_of_the_held_out_batches_and_steps_of_the_others(recompute, float64):
    job = Amalgamation(SGD(0.1), (), "none", Quadratic(), recompute=recompute)
    trajectory, steps, judged = begin(job, _KEY, scaled=False), draw(1, 0.0), draw(2, 3.0)
    losses, _, after = run_student(job, [], trajectory, steps, judged=judged)
    along, _ = losses_by_hand(trajectory.student.parameters, steps, judged, 0.1)
    np.testing.assert_allclose(losses, np.log(along), rtol=1e-9)
    _, _, plain = run_student(job, [], trajectory, steps)
    np.testing.assert_array_equal(after.student.parameters, plain.student.parameters)


def test_the_reported_meta_loss_starts_from_the_held_out_loss_too(float64):
    job = Amalgamation(SGD(0.1), (), "none", Quadratic())
    trajectory, steps, judged = begin(job, _KEY, scaled=False), draw(1, 0.0), draw(2, 3.0)
    _, _, report = truncation(job, [], trajectory, steps, 0.0, judged)
    along, at_start = losses_by_hand(trajectory.student.parameters, steps, judged, 0.1)
    expected = np.mean(np.log(along) - np.log(at_start))
    np.testing.assert_allclose(report.meta_loss, expected, rtol=1e-9)


def test_a_difference_of_losses_bears_negative_ones(float64):
    trajectory_of = lambda job: begin(job, _KEY, scaled=False)  # noqa: E731
    inputs = np.full((_STEPS, _BATCH, 3), 0.5)
    steps = Batch(tf.constant(inputs), tf.zeros((_STEPS, _BATCH), tf.int32))
    reports = []
    for meta_loss in ("log", "difference"):
        job = Amalgamation(SGD(0.4), (), "none", Quadratic(), meta_loss=meta_loss)
        reports.append(truncation(job, [], trajectory_of(job), steps, 0.0)[2])
    start = trajectory_of(job).student.parameters
    along, at_start = losses_by_hand(start, steps, steps, 0.4)
    assert min(along) < 0
    assert [float(report.finite) for report in reports] == [0, 1]
    expected = np.mean(np.subtract(along, at_start))
    np.testing.assert_allclose(reports[1].meta_loss, expected, rtol=1e-9)


def test_an_unknown_meta_loss_is_an_error():
    with pytest.raises(ValueError, match=r"Unknown meta loss. Allowed: log, difference. Received"):
        Amalgamation(SGD(0.1), (), "none", Quadratic(), meta_loss="linear")


def test_a_tenth_is_held_out_anew_for_each_trajectory():
    kept, tenth = held_out(205, (7, 0))
    assert (len(kept), len(tenth)) == (185, 20)
    np.testing.assert_array_equal(np.sort([*kept, *tenth]), np.arange(205))
    np.testing.assert_array_equal(held_out(205, (7, 0))[1], tenth)
    assert set(held_out(205, (7, 1))[1]) != set(tenth)


def test_an_unroll_never_trains_on_what_is_held_out():
    """Examples are told apart by their labels; every epoch and truncation of two unrolls."""
    data = Batch(np.zeros((200, 3), "float32"), np.arange(200))
    job = Amalgamation(SGD(0.1), (), "none", Quadratic())
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    meta = MetaTraining(job, data, _BATCH, 12, 1, strategy, held_out=True)
    for index in range(2):
        cuts = [meta._cut([7, index], start) for start in range(5, 65, 12)]
        steps = [meta._early([7, index], 5), *(cut.steps for cut in cuts)]
        trained = {int(x) for batch in steps for x in np.ravel(batch.labels)}
        judged = {int(x) for cut in cuts for x in np.ravel(cut.judged.labels)}
        assert len(trained) > 170 and len(judged) > 15  # all but an epoch's remainder
        assert not trained & judged


def test_meta_updates_and_validations_judge_by_what_is_held_out(float64):
    data = Batch(np.random.default_rng(0).normal(3, size=(200, 3)), np.zeros(200, "int32"))
    rule = RNNProp(units=2, scale=2.0)
    job, key, here = Amalgamation(rule, (), "none", Quadratic()), [7, 0], [7, 0, 0]
    strategy, weights = tf.distribute.MirroredStrategy(["CPU:0"]), made_tensors(rule)
    meta = MetaTraining(job, data, _BATCH, _STEPS, 1, strategy, scaled=False, held_out=True)
    kept, tenth = held_out(200, here)
    steps, judged = (
        tf.nest.map_structure(tf.constant, batches(data, here, _BATCH, 0, _STEPS, *which))
        for which in ((kept,), (tenth, Stream.HELD_OUT_BATCHES))
    )
    trajectory = begin(job, here, scaled=False)
    losses, _, _ = run_student(job, weights, trajectory, steps, judged=judged)
    _, at_start = losses_by_hand(trajectory.student.parameters, steps, judged, 0)
    expected = np.mean(losses - np.log(at_start))
    begun = meta.begin(weights, key, 0, 0)
    report = meta.update(initial_state(weights), begun, key, 0, 0, 0.0)[2]
    np.testing.assert_allclose(report.meta_loss, expected, rtol=1e-6)
    np.testing.assert_allclose(meta.validate(weights, key, 1, _STEPS, 0), [expected], rtol=1e-6)
