"""What a policy costs in `fit`, beside Keras' Adam: first step, later steps, memory.

    python benchmarks/optimizer.py                              # the Train CNN
    python benchmarks/optimizer.py small10 small100 small300 blocks25 --steps 20 --batch 32
    python benchmarks/optimizer.py dense10m --batch 8 --steps 4
    python benchmarks/optimizer.py cnn blocks25 transformer --threads 1 --parts
    python benchmarks/optimizer.py cnn transformer1 --policy tensorchoice,orthogonal=0

Each fit has a process of its own; Adam and the policy take turns, so that other load hits both, and
medians count. Networks train on random images. "First step" is the first call of `fit`, of one
step, with all that is traced and compiled for it. Peaks are above what a process has before it.
Prints a table and one JSON line.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import alone, count, parser, report, seconds

FITS = 3  # of a process, after the first step; the median counts
CLASSES = 10
NETWORKS = (
    "cnn", "resnet28", "small10", "small100", "small300", "blocks25", "dense70k", "transformer1",
    "transformer", "dense10m",
)  # fmt: skip


def build(name: str):
    """The network of a name in `NETWORKS`."""
    import keras

    from l2o.problems import networks

    layers, images = keras.layers, (28, 28, 1)
    if name == "cnn":
        return networks.cnn(images, CLASSES)
    if name == "resnet28":
        return networks.resnet((32, 32, 3), CLASSES, 28)
    if name.startswith("small"):  # so many variables of width 16
        hidden = [layers.Dense(16, "relu") for _ in range(int(name[5:]) // 2 - 1)]
        return keras.Sequential([layers.Input((16,)), *hidden, layers.Dense(CLASSES)])
    if name.startswith("dense"):
        widths = {"dense70k": (88,), "dense10m": (2850, 2750)}[name]
        hidden = [layers.Flatten(), *(layers.Dense(width, "relu") for width in widths)]
        return keras.Sequential([layers.Input(images), *hidden, layers.Dense(CLASSES)])
    if name == "blocks25":
        values = inputs = layers.Input((8, 8, 16))
        for _ in range(25):
            values = layers.Conv2D(16, 3, padding="same", use_bias=False)(values)
            values = layers.Activation("relu")(layers.BatchNormalization()(values))
        return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAvgPool2D()(values)))
    inputs = layers.Input((28, 28))  # rows of an image as words
    values = layers.Dense(48)(inputs)
    for _ in range(1 if name == "transformer1" else 3):
        normal = layers.LayerNormalization()(values)
        values = values + layers.MultiHeadAttention(4, 12)(normal, normal)
        normal = layers.LayerNormalization()(values)
        values = values + layers.Dense(48)(layers.Dense(144, "gelu")(normal))
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAvgPool1D()(values)))


def the_policy(name: str):
    """A policy by its path or shipped name, or a fresh one by its rule's: "scale,units=4"."""
    import l2o
    from l2o.rules.base import REGISTRY, rule_from_config

    rule, *settings = name.split(",")
    if rule not in REGISTRY:
        return l2o.load_policy(name)
    pairs = (setting.split("=") for setting in settings)
    made = rule_from_config({"rule": rule} | {key: json.loads(value) for key, value in pairs})
    return l2o.Policy(made, [w.numpy() for w in made.initial_weights(0)])


def measure(
    name: str, optimizer: str, threads: int, batch: int, steps: int, jit: str, policy: str
) -> dict:
    """Seconds of the first step, milliseconds of later ones, MB of the peak and of the state."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    _use(threads)
    import keras
    import numpy as np

    import l2o

    keras.utils.set_random_seed(0)
    model = build(name)
    if optimizer == "policy":
        made = l2o.AmalgamatedOptimizer(the_policy(policy), warmup_steps=1, steps=10**6)
    else:
        made = keras.optimizers.get(optimizer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(made, loss, jit_compile={"auto": "auto", "on": True, "off": False}[jit])
    generator = np.random.default_rng(0)
    images = generator.random((batch * steps, *model.input_shape[1:]), "float32")
    labels = generator.integers(0, CLASSES, batch * steps)

    def fit(examples: int) -> float:
        data = images[:examples], labels[:examples]
        return seconds(lambda: model.fit(*data, batch, verbose=0, shuffle=False))

    before = _peak()
    first = fit(batch)
    fit(batch * steps)
    later = statistics.median(fit(batch * steps) for _ in range(FITS)) / steps
    return {
        "parameters": model.count_params(),
        "first_s": first,
        "step_ms": 1e3 * later,
        "peak_mb": _peak() - before,
        "state_mb": sum(v.value.numpy().nbytes for v in made.variables) / 2**20,
    }


def parts(name: str, threads: int, policy: str) -> dict:
    """Milliseconds of the optimizer's step on given gradients, and of the policy's arithmetic.

    The arithmetic is the rule's update of one vector, with its state assigned in place: what is
    left when nothing is joined, cut, checked or copied.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    _use(threads)
    import keras
    import numpy as np
    import tensorflow as tf

    import l2o
    from l2o.rules import Layout

    variables = build(name).trainable_variables
    made = l2o.AmalgamatedOptimizer(the_policy(policy), warmup_steps=1, steps=10**6)
    gradients = [tf.random.stateless_normal(v.shape, (0, 1)) for v in variables]
    apply = tf.function(lambda: made.apply(gradients, variables))
    size = sum(int(np.prod(v.shape)) for v in variables)
    layout, rule, weights = Layout(("all",), ((size,),)), made.policy.rule, made.policy.weights
    gradient, parameters = tf.random.stateless_normal((size,), (0, 1)), tf.Variable(tf.ones(size))
    state = keras.tree.map_structure(lambda x: tf.Variable(x), rule.initial_state(layout))

    @tf.function(jit_compile=True, autograph=False)
    def update():
        before = keras.tree.map_structure(tf.convert_to_tensor, state)
        step, after = rule.update(weights, gradient, parameters, before, layout)
        parameters.assign_sub(step)
        pairs = zip(keras.tree.flatten(state), keras.tree.flatten(after), strict=True)
        for variable, value in pairs:
            variable.assign(value)

    def timed(run, value) -> float:
        return statistics.median(seconds(lambda: (run(), value[:1].numpy())) for _ in range(20))

    for _ in range(3):
        apply(), update()
    turns = [(timed(apply, variables[-1].value), timed(update, parameters)) for _ in range(5)]
    whole, arithmetic = (1e3 * statistics.median(column) for column in zip(*turns, strict=True))
    return {"optimizer_ms": whole, "arithmetic_ms": arithmetic}


def _use(threads: int) -> None:
    """Has TensorFlow, which is not imported yet, compute with so many threads; 0 is its choice."""
    if threads:
        names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        os.environ |= dict.fromkeys(names, str(threads))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(name: str, arguments) -> dict:
    """Medians of Adam, or another of Keras', and the policy, which take turns."""
    settings = (
        arguments.threads, arguments.batch, arguments.steps, arguments.jit, arguments.policy
    )  # fmt: skip
    pair = {"adam": arguments.beside, "policy": "policy"}
    turns = [
        {each: alone(measure, name, one, *settings) for each, one in pair.items()}
        for _ in range(arguments.repeats)
    ]
    found: dict = {"network": name}
    for each in pair:
        rows = [turn[each] for turn in turns]
        found[each] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    if arguments.parts:
        found["parts"] = alone(parts, name, arguments.threads, arguments.policy)
    return found


def main() -> None:
    command = parser(__doc__)
    command.add_argument(
        "networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; default cnn"
    )
    command.add_argument("--batch", type=count, default=128, metavar="N", help="examples a step")
    command.add_argument(
        "--steps", type=count, default=100, metavar="S", help="steps a measurement; default 100"
    )
    command.add_argument(
        "--threads", type=lambda text: count(text, 0), default=0, metavar="K",
        help="of each kind that TensorFlow has; default one a core",
    )  # fmt: skip
    command.add_argument(
        "--jit", choices=["auto", "on", "off"], default="auto", help="jit_compile, as for compile"
    )
    command.add_argument(
        "--policy", default="choice-large", metavar="POLICY",
        help="a policy's name or directory, or a rule with fresh weights, as tensorchoice or "
        "tensorchoice,orthogonal=0",
    )  # fmt: skip
    command.add_argument(
        "--beside", choices=["adam", "muon"], default="adam", help="of Keras' optimizers"
    )
    command.add_argument(
        "--parts", action="store_true", help="the optimizer's step beside its arithmetic alone"
    )
    arguments = command.parse_args()
    if unknown := sorted(set(arguments.networks) - set(NETWORKS)):
        command.error(f"networks are {', '.join(NETWORKS)}, not {', '.join(unknown)}")
    beside = arguments.beside.capitalize()
    print(
        f"{'':11} {'':10} {'first step, s':>19}  {'a step, ms':>24}  {'peak, MB':>13}  state, MB\n"
        f"{'network':11} {'parameters':>10} {beside:>6} {'policy':>6} {'':>5}  {beside:>8} "
        f"{'policy':>8} {'ratio':>6}  {beside:>6} {'policy':>6}  {'policy':>9}"
    )
    results = []
    for name in arguments.networks or ["cnn"]:
        results.append(r := compare(name, arguments))
        adam, policy = r["adam"], r["policy"]
        ratios = [policy[key] / adam[key] for key in ("first_s", "step_ms")]
        print(
            f"{name:11} {policy['parameters']:10,} {adam['first_s']:6.2f} {policy['first_s']:6.2f} "
            f"{ratios[0]:5.2f}  {adam['step_ms']:8.2f} {policy['step_ms']:8.2f} {ratios[1]:6.2f}  "
            f"{adam['peak_mb']:6.0f} {policy['peak_mb']:6.0f}  {policy['state_mb']:9.1f}",
            flush=True,
        )
        if alone_ms := r.get("parts"):
            more = 1 - alone_ms["arithmetic_ms"] / alone_ms["optimizer_ms"]
            print(
                f"{'':11} alone: a step {alone_ms['optimizer_ms']:.2f} ms, its arithmetic "
                f"{alone_ms['arithmetic_ms']:.2f} ms; all else {100 * more:.0f}%"
            )
    report("optimizer", threads=arguments.threads, jit=arguments.jit, results=results)


if __name__ == "__main__":
    main()
