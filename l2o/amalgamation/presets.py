"""What goes by a name: the curricula of presets, and recipes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from l2o.amalgamation.curriculum import Curriculum

# cpu has the paper's stages and about its number of meta-updates, with one trajectory in each.
# smoke goes through everything there is and learns nothing to speak of.
CURRICULA = {
    "paper": Curriculum(),
    "cpu": Curriculum(meta_batch=1, period=10, min_periods=6, max_periods=6, patience=6),
    "smoke": Curriculum(
        truncation=20, meta_batch=1, period=2, min_periods=2, max_periods=2, patience=2,
        validation_trajectories=2, unrolls=(20, 40, 60, 80), last_validation=100,
        choice_unrolls=(20, 40, 60), choice_validation=80,
    ),
}  # fmt: skip
# The same for an evolution strategy: one stage, whose unrolls are as long as the longest fit.
_WHOLE = Curriculum(
    truncation=50, meta_batch=32, period=160, unrolls=(2000,), alphas=(0.1,), last_validation=2000,
    choice_unrolls=(2000,) * 5, choice_validation=2000, choice_cold_periods=0,
)  # fmt: skip
WINDOWS = {
    "paper": _WHOLE,
    "cpu": replace(_WHOLE, meta_batch=8, period=40, min_periods=6, max_periods=6, patience=6),
    "smoke": replace(
        _WHOLE, truncation=20, meta_batch=2, period=4, unrolls=(80,), last_validation=80,
        choice_unrolls=(80, 80), choice_validation=80, validation_trajectories=2,
        min_periods=2, max_periods=2, patience=2,
    ),
}  # fmt: skip

ESTIMATORS = ("backprop", "es")
# The learned optimizers that the paper compares with (Section 5), and one for any network.
RECIPES: dict[str, dict[str, Any]] = {
    "original": {"policy": "original", "scheme": "none", "teachers": "adam"},
    "scale": {"policy": "scale", "scheme": "none", "teachers": "adam"},
    "rnnprop": {"policy": "rnnprop", "scheme": "none", "teachers": "adam"},
    "stronger": {"policy": "rnnprop", "scheme": "mean", "teachers": "adam"},
    "general": {
        "policy": "tensorchoice",
        "scheme": "none",
        "teachers": "adam",
        "estimator": "es",
        "meta_loss": "difference",
        "held_out": True,
        "subsets": True,
        "reparameterised": 0.5,
        "untold": 1 / 3,
        "noisy": 0.1,
        "warmup_steps": 0,
        "learning_rate": 0.01,
        "cosine": True,
        "meta_batch": 2,
        "period": 8,
        "min_periods": 20,
        "max_periods": 20,
        "patience": 20,
        "validation_trajectories": 2,
    },
}
RECIPE_PROBLEMS = {"general": ["families"]}  # where none is named
WHAT = ("policy", "scheme", "teachers", "estimator")  # what a recipe says


def default_problems(recipe: str | None) -> list[str]:
    """What is trained on where nothing is named."""
    return RECIPE_PROBLEMS.get(recipe or "", ["mnist_cnn"])
