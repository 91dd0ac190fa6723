"""What golden files are made of: a network, data, and how each number in them is computed.

`tests/golden/make.py` writes the files and `test_golden.py` holds the code of today against them.
Cases are written in plain words and numbers, which no later code need know by another name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from made_weights import made_tensors, made_weights
from sklearn.datasets import load_digits

from l2o import AmalgamatedOptimizer, Policy
from l2o.amalgamation.perturbation import Perturbation
from l2o.amalgamation.unroll import Amalgamation, Teacher, begin, truncation, warm_up
from l2o.problems import Batch, Problem
from l2o.rules import UpdateRule, rule_from_config
from l2o.tasks.batches import Stream, batches
from l2o.tasks.task import Task

GOLDEN = Path(__file__).parent / "golden"
STEPS = 5  # of a model, before it is saved and after
WARMUP, TRUNCATION, BATCH, ALPHA = 3, 8, 16, 0.3

_LSTM = {"units": 2, "layers": 2}
RULES: dict[str, dict] = {
    "sgd": {"learning_rate": 0.1},
    "momentum": {"learning_rate": 0.2, "beta": 0.8},
    "rmsprop": {"learning_rate": 0.01},
    "adam": {"learning_rate": 0.02, "bias_correction": "constant"},
    "addsign": {"learning_rate": 0.1},
    "powersign": {"learning_rate": 0.1},
    "rnnprop": {**_LSTM, "scale": 0.05},
    "original": _LSTM,
    "choice": {
        **_LSTM,
        "teachers": [
            {"rule": "adam", "learning_rate": 0.02},
            {"rule": "rmsprop", "learning_rate": 0.01},
            {"rule": "powersign", "learning_rate": 0.1},
        ],
    },
    "scale": {"units": 3, "tensor_units": 2, "global_units": 2},
    "averaged": {"inner": {"rule": "rnnprop", **_LSTM}, "share": 0.5},
    # From format 2 of policies on.
    "warmup": {
        "inner": {
            "rule": "decayed",
            "inner": {"rule": "averaged", "inner": {"rule": "rnnprop", **_LSTM}, "share": 0.5},
            "rate": 1e-3,
        },
        "steps": 90,
        "rate": 0.02,
    },
    "scheduled": {
        "inner": {"rule": "sgd", "learning_rate": 0.1},
        "schedule": {"shape": "cosine", "steps": 110, "warmup": 0.1, "end": 0.0},
    },
    "moving_average": {"inner": {"rule": "sgd", "learning_rate": 0.1}, "momentum": 0.9},
    "adamw": {"learning_rate": 0.02, "weight_decay": 0.1},
    "nadam": {"learning_rate": 0.02},
    "lion": {"learning_rate": 0.01},
    "muon": {"learning_rate": 0.02},
}
# Optimizers of saved models: a name in `RULES`, and settings.
MODELS: dict[str, tuple[str, dict]] = {
    "plain": ("rnnprop", {}),
    "averaged": ("averaged", {}),
    "decayed": ("rnnprop", {"weight_decay": 1e-3}),
    "mixed_float16": ("rnnprop", {}),
    "choice": ("choice", {}),
    "scale": ("scale", {}),
    "adam": ("adam", {}),
    "warmup": ("warmup", {}),
    "settings": (
        "rnnprop",
        {
            "learning_rate": 0.5,
            # 0.02 when it was saved, as no learning rate scaled the warm-up.
            "warmup_learning_rate": 0.04,
            "averaging": 0.3,
            "weight_decay": 1e-4,
            "global_clipnorm": 0.5,
            "use_ema": True,
            "ema_momentum": 0.9,
            "gradient_accumulation_steps": 2,
        },
    ),
}
_TEACHERS = [
    {"rule": "adam", "learning_rate": 0.02},
    {"rule": "rmsprop", "learning_rate": 0.01},
    {"rule": "momentum", "learning_rate": 0.3},
]
_LARGE = [{"rule": name, "learning_rate": 0.05} for name in
          ("adam", "rmsprop", "sgd", "momentum", "addsign", "powersign")]  # fmt: skip
# Truncations: what departs from RNNProp under the mean scheme with `_TEACHERS`, scaled.
TRUNCATIONS: dict[str, dict] = {
    "none": {"scheme": "none", "teachers": []},
    "mean": {},
    "minmax": {"scheme": "minmax"},
    "mean-large": {"teachers": _LARGE},
    "minmax-large": {"scheme": "minmax", "teachers": _LARGE},
    "choice": {"rule": "choice", "scheme": "none", "teachers": [], "scaled": False},
    "distilled": {"teachers": [{"rule": "choice", **RULES["choice"]}]},
    "original": {"rule": "original", "scaled": False},
    "scale": {"rule": "scale", "scaled": False},
    "averaged": {"rule": "averaged"},
    "gaussian": {"perturbation": {"kind": "gaussian", "magnitude": 0.01}},
    "gaussian-absolute": {
        "perturbation": {"kind": "gaussian", "magnitude": 0.01, "absolute": True}
    },
    "adversarial": {"perturbation": {"kind": "adversarial", "magnitude": 0.01, "attack_steps": 2}},
    "pgd": {"perturbation": {"kind": "pgd", "magnitude": 0.01, "attack_steps": 2}},
    "fgsm": {"perturbation": {"kind": "fgsm", "magnitude": 0.01}},
    "input": {"perturbation": {"kind": "input", "magnitude": 0.01}},
    "first-order": {"first_order": True},
    "recomputed": {"recompute": 4},
    "held-out": {"held_out": True},
    "difference": {"meta_loss": "difference"},
}
# A run in two phases, of the policy that is saved after 16 meta-updates, and an evaluation.
RUN = (
    "--data digits --pool small --problem mnist_mlp --preset smoke --truncation 2 --unrolls 4 "
    "--alphas 0.1 --last-validation 4 --choice-unrolls 4 4 --choice-validation 4 --warmup-steps 2"
)
STOPPED = {"choice-phase": 7, "policy-phase": 15}  # after so many meta-updates
EVALUATION = (
    "--data digits --problem mnist_mlp --preset smoke --repeats 2 --epochs 12 --optimizer "
    "adam rmsprop@0.01 keras:AdamW rnnprop averaged decayed"
)


def network() -> keras.Model:
    """Convolution, batch norm, max-pool, dense: 214 parameters."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(2, 3, activation="relu", name="convolution"),
            layers.BatchNormalization(name="norm"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10, name="dense"),
        ]
    )


def data() -> Batch:
    """Scikit-learn's digits, 8×8, in Keras' float type."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1) / 16
    return Batch(images.astype(keras.config.floatx()), labels.astype("int32"))


@contextmanager
def precision(policy: str) -> Iterator[None]:
    """Layers made within have this dtype policy, tensors its float type."""
    floatx, before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64" if policy == "float64" else "float32")
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(before)


def rule(name: str) -> UpdateRule:
    """The rule of a name in `RULES`."""
    return rule_from_config({"rule": name, **RULES[name]})


def policy(name: str) -> Policy:
    """A policy with weights that move, of a name in `RULES`."""
    return Policy(rule(name), made_weights(rule(name)), {"problem": "a test"})


def model(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """`network`, compiled with an optimizer, from the same weights at every call."""
    built, generator = network(), np.random.default_rng(0)
    for variable in built.trainable_variables:
        variable.assign(0.3 * generator.normal(size=variable.shape))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    built.compile(optimizer, loss, jit_compile=False)
    return built


def optimizer(name: str) -> AmalgamatedOptimizer:
    """The optimizer of a name in `MODELS`."""
    which, settings = MODELS[name]
    return AmalgamatedOptimizer(policy(which), **{"warmup_steps": 3} | settings)


def trained(compiled: keras.Model, steps: range) -> np.ndarray:
    """All weights after each step on the digits, [steps, W]."""
    inputs, labels, _ = data()
    path = []
    for k in steps:
        some = slice(32 * k, 32 * k + 32)
        compiled.train_on_batch(inputs[some], labels[some])
        path.append(np.concatenate([w.ravel() for w in compiled.get_weights()]))
    return np.array(path)


def applied(optimizer: keras.optimizers.Optimizer, steps: int) -> np.ndarray:
    """Three variables under an optimizer and gradients that nothing changes, [steps, 9]."""
    generator, shapes = np.random.default_rng(0), ((3, 2), (2,), ())
    variables = [
        keras.Variable(generator.normal(size=shape), name=f"v{k}") for k, shape in enumerate(shapes)
    ]
    optimizer.build(variables)
    path = []
    for _ in range(steps):
        gradients = [generator.normal(size=shape).astype("float32") for shape in shapes]
        optimizer.apply(list(map(tf.constant, gradients)), variables)
        path.append(np.concatenate([v.numpy().ravel() for v in variables]))
    return np.array(path)


def shipped(name: str) -> dict[str, np.ndarray]:
    """Fifty steps of a shipped policy, five of them warm-up: losses [50] and the weights then."""
    compiled = model(AmalgamatedOptimizer.load(name, warmup_steps=5))
    inputs, labels, _ = data()
    cuts = [slice(32 * k, 32 * k + 32) for k in range(50)]
    losses = [compiled.train_on_batch(inputs[cut], labels[cut]) for cut in cuts]
    weights = np.concatenate([w.ravel() for w in compiled.get_weights()])
    return {"losses": np.array(losses, "float32"), "weights": weights}


def truncated(case: dict) -> dict[str, np.ndarray]:
    """One truncation after a warm-up: meta-gradient, losses, and all that the trajectory holds."""
    student = rule(case.get("rule", "rnnprop"))
    teachers = [rule_from_config(config) for config in case.get("teachers", _TEACHERS)]
    noise = case.get("perturbation")
    job = Amalgamation(
        student,
        tuple(Teacher(teacher, made_tensors(teacher)) for teacher in teachers),
        case.get("scheme", "mean"),
        Task(Problem(network)),
        first_order=case.get("first_order", False),
        recompute=case.get("recompute", 0),
        perturbation=noise and Perturbation(**noise),
        meta_loss=case.get("meta_loss", "log"),
    )
    weights = made_tensors(student)
    key = [7, 0, 0]
    trajectory = begin(job, key, case.get("scaled", True))

    def cut(start: int, steps: int, stream: Stream = Stream.BATCHES) -> Batch:
        found = batches(data(), key, BATCH, start, steps, stream=stream)
        return tf.nest.map_structure(tf.convert_to_tensor, found)

    judged = cut(WARMUP, TRUNCATION, stream=Stream.HELD_OUT_BATCHES) if case.get("held_out") else ()
    trajectory = warm_up(job, weights, trajectory, cut(0, WARMUP))
    run = tf.function(lambda *args: truncation(job, *args), autograph=False)
    gradient, after, report = run(weights, trajectory, cut(WARMUP, TRUNCATION), ALPHA, judged)
    found = {f"gradient/{k}": g for k, g in enumerate(gradient)}
    found |= {name: getattr(report, name) for name in ("meta_loss", "distance", "finite")}
    runners = {"student": after.student}
    runners |= {f"teacher{k}": runner for k, runner in enumerate(after.teachers)}
    for name, runner in runners.items():
        found[f"{name}/parameters"] = runner.parameters
        found |= {f"{name}/carried{k}": x for k, x in enumerate(runner.carried)}
        for kind, values in runner.state._asdict().items():
            found |= {f"{name}/{kind}/{key}": x for key, x in values.items()}
    return {name: np.asarray(x) for name, x in found.items()}
