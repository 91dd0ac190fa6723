"""Settings: what may be chosen, by name, and the phases that it comes to."""

import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from l2o.amalgamation.curriculum import Curriculum
from l2o.amalgamation.episodes import Evolution
from l2o.amalgamation.perturbation import Perturbation
from l2o.amalgamation.plan import Meta
from l2o.amalgamation.presets import CURRICULA, RECIPES, WINDOWS
from l2o.amalgamation.settings import (
    CHOICES,
    PRESETS,
    Settings,
    Shorthands,
    parsed,
    with_choices,
)
from l2o.rules import SGD, Adam, Original, RNNProp

PAPER = PRESETS["paper"]


def chosen(preset: str = "paper", **choices) -> Settings:
    return with_choices(PRESETS[preset], choices)


def schedules(preset: str = "paper", **choices) -> list:
    return [phase.schedule for phase in reversed(chosen(preset, **choices).phases())]


def test_every_name_is_in_one_place():
    parts = (Settings, Shorthands, Curriculum, Meta, Evolution, Perturbation)
    names = [f.name for part in parts for f in fields(part)]
    assert len(names) == len(set(names))
    assert set(names) - set(CHOICES) == {"preset", "curriculum", "meta", "evolution", "kind"}


def test_every_setting_of_an_evolution_strategy_can_be_chosen():
    values = {
        "noise_size": 0.1, "fresh_noise": True, "shortest": 3, "end_weight": 2.0, "loss_limit": 3.0,
        "gradient_norm": 4.0, "cosine": True, "subsets": True, "reparameterised": 0.25,
        "untold": 0.5, "noisy": 0.125,
    }  # fmt: skip
    assert set(values) == {f.name for f in fields(Evolution)}
    found = chosen(estimator="es", **values)
    assert found.meta.evolution == Evolution(**values)
    assert found.curriculum == WINDOWS["paper"]
    assert with_choices(found, {"untold": 0.0}).meta.evolution == replace(
        Evolution(**values), untold=0.0
    )
    for wrong, message in (
        ({"noise_size": 0.1}, "noise_size: only with estimator es"),
        ({"estimator": "es", "perturbation": "gaussian", "magnitude": 0.1}, "adds noise by itself"),
        ({"estimator": "es", "loss_limit": 1.0}, "loss_limit must be a number above 1"),
        ({"estimator": "es", "untold": 1.5}, "untold is a share, 0 to 1"),
        ({"estimator": "evolution"}, "Unknown estimator. Allowed: backprop, es"),
        ({"recipe": "general", "estimator": "es"}, "recipe says what is trained, so estimator"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen(**wrong)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_alone(preset):
    assert chosen(preset) == PRESETS[preset] and PRESETS[preset].preset == preset
    schedule, choice = schedules(preset)
    assert schedule == CURRICULA[preset].schedule
    assert choice.stages[0].unrolls == CURRICULA[preset].choice_unrolls


def test_every_setting_of_the_schedule_can_be_chosen():
    pace = {
        "truncation": 50, "meta_batch": 2, "period": 6, "min_periods": 3, "max_periods": 7,
        "patience": 4, "max_repeats": 0, "tolerance": 0.25, "validation_trajectories": 5,
    }  # fmt: skip
    schedule, choice = schedules(
        **pace, unrolls=(50, 100), alphas=(1, 0), last_validation=150,
        choice_unrolls=(50, 100, 150), choice_validation=200, choice_cold_periods=2,
    )  # fmt: skip
    assert {name: getattr(schedule, name) for name in pace} == pace
    stages = [(s.unrolls, s.validation_unroll, s.alpha) for s in schedule.stages]
    assert stages == [((50,), 100, 1.0), ((100,), 150, 0.0)]
    (stage,) = choice.stages
    assert (stage.unrolls, stage.validation_unroll, stage.cold_periods) == ((50, 100, 150), 200, 2)
    assert choice.max_periods == 3 and choice.truncation == 50


def test_every_setting_of_the_meta_training_can_be_chosen():
    values = {
        "seed": 5, "learning_rate": 2.0, "clip_ratio": 3.0, "clip_floor": 4.0, "warmup_steps": 5,
        "warmup_rate": 6.0, "scaling": False, "scale_limit": 7.0, "first_order": True,
        "recompute": 5, "held_out": True, "meta_loss": "difference",
    }  # fmt: skip
    noise = {"perturbation": "adversarial", "magnitude": 8, "attack_steps": 9}
    meta = Meta(**values, perturbation=Perturbation("adversarial", 8, attack_steps=9))
    assert set(values) | {"perturbation", "evolution"} == {f.name for f in fields(Meta)}
    assert chosen(**values, **noise).meta == meta
    assert chosen(**values, perturbation=meta.perturbation).meta == meta
    again = with_choices(replace(PAPER, meta=meta), {"magnitude": 1, "seed": 6})
    assert again.meta == replace(meta, seed=6, perturbation=replace(meta.perturbation, magnitude=1))
    assert with_choices(again, {"perturbation": "none"}).meta.perturbation is None


def test_updates_are_one_period():
    schedule, _ = schedules(updates=6, unrolls=200, alphas=0.3, meta_batch=2)
    assert [(s.unrolls, s.alpha) for s in schedule.stages] == [((200,), 0.3)]
    assert (schedule.period, schedule.min_periods, schedule.max_periods) == (6, 1, 1)
    assert schedule.stages[0].validation_unroll == 200
    _, choice = schedules("cpu", updates=6, unrolls=100, alphas=0.3)
    assert [(s.unrolls, s.validation_unroll) for s in choice.stages] == [((100,), 1000)]
    assert (choice.period, choice.min_periods, choice.max_periods) == (6, 1, 1)


@pytest.mark.parametrize("name", ["updates", "last_validation", "choice_validation", "truncation"])
def test_a_zero_is_not_taken_for_the_presets_value(name):
    with pytest.raises(ValueError, match="must be"):
        chosen("cpu", **{name: 0})


@pytest.mark.parametrize("name", ["unrolls", "alphas", "choice_unrolls"])
@pytest.mark.parametrize("updates", [None, 1])
def test_nothing_is_not_taken_for_the_presets_values(name, updates):
    with pytest.raises(ValueError, match=r"Received: (none|0|[14] unrolls and 0)\b"):
        chosen("cpu", **{name: ()}, updates=updates)


def test_numbers_of_numpy_are_numbers():
    settings = chosen(seed=np.int64(3), alphas=[np.float32(0.5)], unrolls=np.array([100]))
    assert json.loads(json.dumps(asdict(settings.meta)))["seed"] == 3
    assert (settings.curriculum.alphas, settings.curriculum.unrolls) == ((0.5,), (100,))


def test_choice_schedule_is_only_for_choice():
    (schedule,) = schedules("cpu", scheme="mean", truncation=30, updates=2, unrolls=30)
    assert schedule.truncation == 30  # of which the Choice policy's unrolls are no multiple
    with pytest.raises(ValueError, match="choice_unrolls cannot be set with scheme mean"):
        chosen(scheme="mean", choice_unrolls=(100,))


def test_phases():
    first, second = chosen().phases()
    assert [(p.name, p.scheme, p.teachers) for p in (first, second)] == [
        ("choice", "none", ()), ("policy", "mean", None),
    ]  # fmt: skip
    assert len(first.rule.teachers) == 6
    for scheme, teachers in (("none", 0), ("mean", 2), ("minmax", 2)):
        (phase,) = chosen(scheme=scheme, teachers="small").phases()
        assert (phase.scheme, len(phase.teachers), phase.name) == (scheme, teachers, "policy")


def test_objects_are_taken_as_well_as_names():
    settings = chosen(policy=RNNProp(units=10), teachers=("adam", SGD(0.5)), scheme="mean")
    (phase,) = settings.phases()
    assert phase.rule == RNNProp(units=10)
    assert [t.rule for t in phase.teachers] == [Adam(2e-3), SGD(0.5)]
    assert chosen(policy=Original(units=3), output_scale=0.5).rule == Original(units=3, scale=0.5)
    assert chosen(policy="rnnprop").phases() == chosen(policy=RNNProp()).phases()


def test_a_recipe_stands_for_three_choices():
    for recipe, choices in RECIPES.items():
        assert chosen(recipe=recipe) == chosen(**choices)
    with pytest.raises(ValueError, match="recipe says what is trained, so teachers cannot be set"):
        chosen(recipe="scale", teachers="small")


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"clip_ration": 1, "sead": 2},
         "clip_ration, sead. Did you mean clip_ratio. Did you mean seed. Allowed: absolute, al"),
        ({"meta": Meta()}, "Unknown settings: meta. "),
        ({"preset": "cpu"}, "Unknown settings: preset. "),
    ],
)  # fmt: skip
def test_a_name_that_is_none(choices, message):
    with pytest.raises(TypeError, match=message):
        with_choices(PAPER, choices)


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"tolerance": "much"}, "tolerance must be a number. Received: 'much'"),
        ({"seed": True}, "seed must be a whole number. Received: True"),
        ({"unrolls": (100, 2.5)}, r"unrolls must be whole numbers. Received: \(100, 2.5\)"),
        ({"meta_loss": "linear"}, "Unknown meta_loss. Allowed: log, difference. Received: linear"),
        ({"perturbation": "noise"}, "Allowed: none, gaussian.* Received: noise"),
        ({"perturbation": 3, "magnitude": 1.0}, "Unknown perturbation. .* Received: 3"),
        ({"policy": ["rnnprop"]}, "Unknown policy"),
        ({"teachers": "sgd"}, "Unknown pool. Allowed: adam, small, large. Received: sgd"),
        ({"teachers": ("sgdm",)}, "Unknown teacher. Allowed: adam, .* Received: sgdm"),
        ({"teachers": Adam(0.1)}, "teachers must be a pool's name, or rules and names"),
        ({"output_scale": 0}, "output_scale must be a number above 0. Received: 0"),
        ({"output_scale": 1, "policy": "scale"}, "for rnnprop and original. Received: scale"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be(choices, message):
    with pytest.raises(ValueError, match=message):
        with_choices(PAPER, choices)


@pytest.mark.parametrize(
    "text, value",
    [
        ("3", 3), ("1e-3", 1e-3), ("True", True), ("difference", "difference"), ("nan", "nan"),
        ("100,200", (100, 200)), ("adam,sgd", ("adam", "sgd")), ("", ""), ("a=b", "a=b"),
        ("(" * 5000, "(" * 5000), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_words_of_a_command_line(text, value):
    assert parsed(text) == value
