"""Meta loss, distances and schemes against numbers worked out by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from l2o.amalgamation.losses import SCHEMES, log_distance, log_loss, mean_scheme, minmax_scheme

_DISTANCES = np.array([[1.0, 5.0, 3.0], [-4.0, -6.0, -2.0]])  # two steps, three teachers


def test_distance_is_the_log_of_half_the_mean_square():
    student = tf.constant([1.0, 2.0, 3.0, 4.0])
    teachers = tf.constant([[1.0, 2.0, 3.0, 6.0], [0.0, 3.0, 3.0, 4.0]])
    expected = [math.log(2) - math.log(4), math.log(1) - math.log(4)]
    np.testing.assert_allclose(log_distance(student, teachers), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 1000])
def test_distance_of_equals_is_the_floor(size):
    here = tf.ones(size)
    expected = math.log(1e-10) - math.log(size)
    np.testing.assert_allclose(log_distance(here, here[None]), [expected], rtol=1e-6)


def test_floor_is_inside_the_logarithm_and_not_divided_by_the_size():
    student, teachers = tf.constant([1e-5, 0.0], tf.float64), tf.zeros((1, 2), tf.float64)
    expected = math.log(0.5e-10 + 1e-10) - math.log(2)
    np.testing.assert_allclose(log_distance(student, teachers), [expected], rtol=1e-7)


def test_distance_has_a_finite_gradient_where_student_and_teacher_meet():
    student = tf.ones(3)
    with tf.GradientTape() as tape:
        tape.watch(student)
        distance = log_distance(student, tf.ones((2, 3)))
    np.testing.assert_array_equal(tape.gradient(distance, student), np.zeros(3))


def test_no_teachers_no_distances():
    assert log_distance(tf.ones(3), tf.ones((0, 3))).shape == (0,)


def test_log_loss_has_a_floor():
    np.testing.assert_allclose(log_loss(tf.constant([0.0, 1.0])), [math.log(1e-10), 0], atol=1e-6)
    np.testing.assert_allclose(log_loss(tf.constant(2.5)), math.log(2.5), rtol=1e-6)


def test_mean_scheme():
    assert float(mean_scheme(tf.constant(_DISTANCES))) == -3 / 6


def test_minmax_scheme_takes_the_maximum_at_every_step():
    assert float(minmax_scheme(tf.constant(_DISTANCES))) == (5 - 2) / 2


def test_minmax_gradient_goes_to_the_farthest_teacher_of_each_step():
    distances = tf.constant(_DISTANCES)
    with tf.GradientTape() as tape:
        tape.watch(distances)
        value = minmax_scheme(distances)
    np.testing.assert_array_equal(tape.gradient(value, distances), [[0, 0.5, 0], [0, 0, 0.5]])


def test_schemes_by_name():
    assert SCHEMES == {"none": None, "mean": mean_scheme, "minmax": minmax_scheme}
