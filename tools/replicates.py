"""Amalgamation of several replicates at once on one GPU, in JAX: how the shipped policies came.

    KERAS_BACKEND=jax python tools/replicates.py mnist.npz OUT --seeds 0 1 2 3

The rules are l2o's own (they run on any backend of Keras), as is the curriculum; the unroll is
written here a second time, for the Train network alone, so that replicates and trajectories
become batch dimensions of one program.
Random numbers are drawn as in l2o, except initial weights, which come from Keras' JAX backend and
from NumPy.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from l2o.rules import Choice, RNNProp, get_pool  # noqa: E402
from l2o.rules.analytical import Adam  # noqa: E402
from l2o.rules.layout import Layout  # noqa: E402

# By its path: the package around it wants TensorFlow.
_spec = importlib.util.spec_from_file_location(
    "curriculum", ROOT / "l2o/amalgamation/curriculum.py"
)
curriculum = sys.modules["curriculum"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(curriculum)

SHAPES = ((3, 3, 1, 16), (16,), (5, 5, 16, 32), (32,), (512, 10), (10,))
LAYOUT = Layout(tuple(f"tensor_{k}" for k in range(6)), SHAPES)
BATCH, TRUNCATION, WARMUP, WARMUP_RATE = 128, 100, 100, 0.01
SCALE_LIMIT, CLIP_RATIO, CLIP_FLOOR, LOG_FLOOR = 1.0, 0.1, 1e-3, 1e-10
TRAINING, VALIDATION, INITIAL = 0, 1, 2


class Runner(NamedTuple):
    parameters: Any  # [D]
    state: Any


class Trajectory(NamedTuple):
    student: Runner
    start: Any  # [D], in clean coordinates
    scale: Any  # [D]
    teachers: tuple


class MetaState(NamedTuple):
    weights: list
    optimizer: Any
    skipped: Any


class Job(NamedTuple):
    rule: Any
    teachers: tuple  # of rules


def patches(x, k):
    """[B, H, W, C] -> [B, H-k+1, W-k+1, k k C], in the order of a convolution's kernel."""
    n = x.shape[1] - k + 1
    return jnp.concatenate(
        [x[:, i : i + n, j : j + n] for i in range(k) for j in range(k)], axis=-1
    )


def pool(x):
    """Max-pool 2, whose gradient goes to the first of equals."""
    first = lambda a, b: jnp.where(a >= b, a, b)  # noqa: E731
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c)
    top = first(x[:, :, 0, :, 0], x[:, :, 0, :, 1])
    return first(top, first(x[:, :, 1, :, 0], x[:, :, 1, :, 1]))


def network_loss(parameters, inputs, labels):
    """The Train network's mean loss on pixels [B, 28, 28]."""
    k1, b1, k2, b2, w, b = LAYOUT.unflatten(parameters)
    x = inputs[:, :26, :26, None].astype(jnp.float32) / 255  # all that the pools do not drop
    x = pool(jax.nn.relu(patches(x, 3) @ k1.reshape(9, 16) + b1))
    x = pool(jax.nn.relu(patches(x, 5) @ k2.reshape(400, 32) + b2))
    logits = x.reshape(len(x), 512) @ w + b
    picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)


def log_loss(loss):
    return jnp.log(loss + LOG_FLOOR)


def fetch(data, indices):
    return data[0][indices], data[1][indices]


def warm_up(job, data, theta, scale, indices):
    """A fresh trajectory after its warm-up over [W, B] examples; W may be 0."""

    def step(carry, chosen):
        clean, state, states = carry
        gradient = jax.grad(network_loss)(clean, *fetch(data, chosen))
        clean = clean - WARMUP_RATE * gradient
        state = job.rule.observe([], gradient * scale, state, LAYOUT)
        states = tuple(
            r.observe([], gradient, s, LAYOUT) for r, s in zip(job.teachers, states, strict=True)
        )
        return (clean, state, states), None

    states = tuple(r.initial_state(LAYOUT) for r in job.teachers)
    first = (theta, job.rule.initial_state(LAYOUT), states)
    (clean, state, states), _ = jax.lax.scan(step, first, indices)
    teachers = tuple(Runner(clean, s) for s in states)
    return Trajectory(Runner(clean / scale, state), clean, scale, teachers)


def follow(job, teacher_weights, data, runners, indices):
    def step(runners, chosen):
        moved = []
        thetas = jnp.stack([r.parameters for r in runners])
        batch = fetch(data, chosen)
        gradients = jax.vmap(lambda p: jax.grad(network_loss)(p, *batch))(thetas)
        for k, (rule, runner) in enumerate(zip(job.teachers, runners, strict=True)):
            move, state = rule.update(teacher_weights[k], gradients[k], runner.state, LAYOUT)
            new = Runner(runner.parameters - move, state)
            moved.append(choose(all_finite(new), new, runner))
        return tuple(moved), jnp.stack([r.parameters for r in moved])

    return jax.lax.scan(step, runners, indices)


def practise(job, weights, data, trajectory, indices, path):
    """Log losses [T], distances [T, K], the student."""
    scale = trajectory.scale

    @jax.checkpoint
    def step(runner, here):
        chosen, goals = here
        batch = fetch(data, chosen)
        loss, gradient = jax.value_and_grad(lambda p: network_loss(p * scale, *batch))(
            runner.parameters
        )
        move, state = job.rule.update(weights, gradient, runner.state, LAYOUT)
        runner = Runner(runner.parameters - move, state)
        squares = jnp.sum(jnp.square(runner.parameters - goals / scale), axis=-1)
        distance = jnp.log(squares / 2 + LOG_FLOOR) - math.log(LAYOUT.size)
        return runner, (log_loss(loss), distance)

    runner, (losses, distances) = jax.lax.scan(step, trajectory.student, (indices, path))
    return losses, distances, runner


def start_losses(data, trajectory, indices):
    def step(_, chosen):
        return None, log_loss(network_loss(trajectory.start, *fetch(data, chosen)))

    return jax.lax.scan(step, None, indices)[1]


def reduced(distances, minmax):
    if distances.shape[-1] == 0:
        return jnp.zeros(())
    return jnp.mean(jnp.max(distances, -1) if minmax else jnp.mean(distances, -1))


def truncation(job, weights, teacher_weights, data, trajectory, indices, alpha, minmax=False):
    """Meta-gradient, the trajectory after it, (meta loss, distance, finite)."""
    teachers = trajectory.teachers
    path = jnp.zeros((len(indices), 0, LAYOUT.size))
    if job.teachers:
        teachers, path = follow(job, teacher_weights, data, teachers, indices)

    def objective(weights):
        losses, distances, runner = practise(job, weights, data, trajectory, indices, path)
        distance = reduced(distances, minmax)
        meta = jnp.mean(losses)
        return meta + alpha * distance, (meta, distance, runner)

    gradient, (meta, distance, runner) = jax.grad(objective, has_aux=True)(weights)
    meta = meta - jnp.mean(start_losses(data, trajectory, indices))
    after = trajectory._replace(student=runner, teachers=teachers)
    finite = all_finite((gradient, after, meta, distance))
    return gradient, choose(finite, after, trajectory), (meta, distance, finite)


def rehearse(job, weights, data, trajectory, indices):
    def step(runner, chosen):
        batch = fetch(data, chosen)
        loss, gradient = jax.value_and_grad(network_loss)(runner.parameters, *batch)
        move, state = job.rule.update(weights, gradient, runner.state, LAYOUT)
        start = network_loss(trajectory.start, *batch)
        return Runner(runner.parameters - move, state), log_loss(loss) - log_loss(start)

    runner, losses = jax.lax.scan(step, trajectory.student, indices)
    return trajectory._replace(student=runner), jnp.mean(losses)


def all_finite(structure):
    leaves = [x for x in jax.tree.leaves(structure) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


def choose(condition, yes, no):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def apply(state, gradient, finite, rate):
    layout = Layout.of(state.weights)
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x)))  # noqa: E731
    cut = []
    for g, w in zip(gradient, state.weights, strict=True):
        longest, length = CLIP_RATIO * jnp.maximum(norm(w), CLIP_FLOOR), norm(g)
        cut.append(g * jnp.where(length > longest, longest / jnp.where(length > 0, length, 1), 1))
    move, optimizer = Adam(1.0, epsilon=1e-14).update(
        [], layout.flatten(cut), state.optimizer, layout
    )
    weights = layout.unflatten(layout.flatten(state.weights) - rate * move)
    new = MetaState(list(weights), optimizer, state.skipped)
    finite &= all_finite(new)
    return choose(finite, new, state._replace(skipped=state.skipped + 1))


def make_update(job, minmax=False):
    """One meta-update of [R] replicates, each the mean over [M] trajectories."""

    def one(state, teacher_weights, data, trajectories, indices, alpha, rate):
        each = jax.vmap(
            lambda t, i: truncation(job, state.weights, teacher_weights, data, t, i, alpha, minmax)
        )
        gradients, trajectories, (meta, distance, finite) = each(trajectories, indices)
        mean = jax.tree.map(lambda g: jnp.mean(g, 0), gradients)
        finite = jnp.all(finite)
        state = apply(state, mean, finite, rate)
        return state, trajectories, jnp.stack([meta.mean(), distance.mean(), 1.0 * finite])

    return jax.vmap(one, in_axes=(0, 0, None, 0, 0, None, 0))


def make_warm_up(job):
    lane = lambda *values: warm_up(job, *values)  # noqa: E731
    return jax.vmap(jax.vmap(lane, (None, 0, 0, 0)), (None, 0, 0, 0))


def make_rehearse(job):
    job = job._replace(teachers=())
    lane = lambda w, data, t, i: rehearse(job, w, data, t, i)  # noqa: E731
    return jax.vmap(jax.vmap(lane, (None, None, 0, 0)), (0, None, 0, 0))


# What is drawn, on the host.


def batch_indices(key, start, steps, examples):
    """As `l2o.amalgamation.batches.batch_indices`."""
    per_epoch, rows, order = examples // BATCH, [], (None, None)
    for step in range(start, start + steps):
        epoch, place = divmod(step, per_epoch)
        if epoch != order[0]:
            order = epoch, np.random.default_rng([*key, epoch]).permutation(examples)
        rows.append(order[1][place * BATCH : (place + 1) * BATCH])
    return np.reshape(rows, (steps, BATCH)).astype("int32")


def initial_parameters(seed):
    generator, tensors = np.random.default_rng(seed), []
    for shape in SHAPES:
        size = math.prod(shape)
        if len(shape) == 1:
            tensors.append(np.zeros(size))
        else:
            field = math.prod(shape[:-2])
            limit = math.sqrt(6 / (field * (shape[-2] + shape[-1])))
            tensors.append(generator.uniform(-limit, limit, size))
    return np.concatenate(tensors).astype("float32")


def begin(keys, scaled):
    """Parameters and scales [R, M, D] of fresh trajectories, from keys [R][M]."""
    thetas, scales = [], []
    for row in keys:
        for key in row:
            generator = np.random.default_rng([*key, 0])
            thetas.append(initial_parameters(int(generator.integers(2**31))))
            scale = np.ones(LAYOUT.size)
            if scaled:
                exponents = generator.uniform(-SCALE_LIMIT, SCALE_LIMIT, LAYOUT.size)
                scale = generator.choice((-1.0, 1.0), LAYOUT.size) * np.exp(exponents)
            scales.append(scale.astype("float32"))
    lead = (len(keys), len(keys[0]))
    return np.stack(thetas).reshape(*lead, -1), np.stack(scales).reshape(*lead, -1)


def drawn(pool_, keys, start, steps, examples):
    flat = [key for row in keys for key in row]
    rows = list(pool_.map(lambda key: batch_indices([*key, 1], start, steps, examples), flat))
    return np.stack(rows).reshape(len(keys), len(keys[0]), steps, BATCH)


class Programs(NamedTuple):
    """Compiled, for fixed shapes."""

    warm_up: Any
    cold: Any
    update: Any
    warm_up_alone: Any
    rehearse: Any


def shapes_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.asarray(x).dtype), tree)


def stacked(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def fresh(rule, seeds):
    states = []
    for seed in seeds:
        weights = [jnp.asarray(w) for w in rule.initial_weights(seed)]
        moments = Adam(1.0).initial_state(Layout.of(weights))
        states.append(
            MetaState(weights, jax.tree.map(jnp.asarray, moments), jnp.zeros((), jnp.int32))
        )
    return stacked(states)


def compile_programs(
    workers, job, data, replicas, meta_batch, validations, minmax, teacher_weights
):
    """Futures of the programs."""
    state = shapes_of(fresh(job.rule, [0] * replicas))
    lanes = lambda m, *rest: (replicas, m, *rest)  # noqa: E731
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    vectors = lambda m: (floats(*lanes(m, LAYOUT.size)),) * 2  # noqa: E731
    indices = lambda m, t: jax.ShapeDtypeStruct(lanes(m, t, BATCH), jnp.int32)  # noqa: E731
    data, taught = shapes_of(data), shapes_of(teacher_weights)
    warm, alone = make_warm_up(job), make_warm_up(job._replace(teachers=()))
    warm_shapes = (data, *vectors(meta_batch), indices(meta_batch, WARMUP))
    alone_shapes = (data, *vectors(validations), indices(validations, WARMUP))
    trajectories = jax.eval_shape(warm, *warm_shapes)
    validated = jax.eval_shape(alone, *alone_shapes)
    cut, judged = indices(meta_batch, TRUNCATION), indices(validations, TRUNCATION)
    update = (state, taught, data, trajectories, cut, floats(), floats(replicas))
    wanted = [
        (warm, warm_shapes, ()),
        (warm, (*warm_shapes[:-1], indices(meta_batch, 0)), ()),
        (make_update(job, minmax), update, (0, 3)),
        (alone, alone_shapes, ()),
        (make_rehearse(job), (state.weights, data, validated, judged), (2,)),
    ]

    def build(function, arguments, donated):
        return jax.jit(function, donate_argnums=donated).lower(*arguments).compile()

    return [workers.submit(build, *one) for one in wanted]


class Phase(NamedTuple):
    number: int
    name: str
    job: Job
    schedule: Any
    scaled: bool


def run_phase(phase, programs, seeds, data, teacher_weights, state, rates, workers, note):
    """All stages of a phase, replicates in step.

    Args:
        rates: (stage, period) -> meta learning rates [R].
        note: Called with a dictionary after every period, and with the best policies.
    """
    schedule, examples = phase.schedule, len(data[1])
    replicas, m = len(seeds), schedule.meta_batch
    progress = [curriculum.Progress() for _ in seeds]
    kept, best = state, state
    validations = schedule.validation_trajectories
    while not all(p.finished or p.diverged for p in progress):
        places = [(p.stage, p.period) for p in progress if not (p.finished or p.diverged)]
        at = min(places)
        active = [not (p.finished or p.diverged) and (p.stage, p.period) == at for p in progress]
        stage = schedule.stages[at[0]]

        def validated(weights, stage=stage):
            keys = [[[s, phase.number, VALIDATION, k] for k in range(validations)] for s in seeds]
            early = drawn(workers, keys, 0, WARMUP, examples)
            trajectories = programs.warm_up_alone(data, *begin(keys, False), early)
            total = 0
            for start in range(0, stage.validation_unroll, TRUNCATION):
                cut = drawn(workers, keys, WARMUP + start, TRUNCATION, examples)
                trajectories, losses = programs.rehearse(weights, data, trajectories, cut)
                total = total + losses
            return np.asarray(total) * TRUNCATION / stage.validation_unroll  # [R, V]

        begun = time.monotonic()
        unroll = stage.unroll(at[1])
        warmup = WARMUP if at[1] >= stage.cold_periods else 0
        reports = []
        now = jax.tree.map(jnp.copy, kept)
        rate = jnp.asarray(rates(phase.number, *at), jnp.float32)
        for number in range(schedule.period // m):
            keys = [
                [[s, phase.number, TRAINING, p.trajectories + number * m + k] for k in range(m)]
                for s, p in zip(seeds, progress, strict=True)
            ]
            early = drawn(workers, keys, 0, warmup, examples)
            program = programs.warm_up if warmup else programs.cold
            trajectories = program(data, *begin(keys, phase.scaled), early)
            for start in range(0, unroll, TRUNCATION):
                cut = drawn(workers, keys, warmup + start, TRUNCATION, examples)
                now, trajectories, report = programs.update(
                    now, teacher_weights, data, trajectories, cut, jnp.float32(stage.alpha), rate
                )
                reports.append(report)
        reports = np.asarray(jnp.stack(reports))  # [updates, R, 3]
        trained = time.monotonic()
        if any(p.incoming is None for p, on in zip(progress, active, strict=True) if on):
            incoming = validated(kept.weights).mean(axis=1)
            for r in range(replicas):
                if active[r] and progress[r].incoming is None:
                    progress[r] = curriculum.enter(progress[r], float(incoming[r]))
        losses = validated(now.weights)
        rows = []
        for r in range(replicas):
            if not active[r]:
                continue
            skipped = float(1 - reports[:, r, 2].mean())
            before = progress[r]
            progress[r], verdict = curriculum.judge(
                schedule, before, float(losses[r].mean()), skipped
            )
            row = lambda tree, r=r: jax.tree.map(lambda x: x[r], tree)  # noqa: E731
            put = lambda tree, new, r=r: jax.tree.map(lambda x, y: x.at[r].set(y), tree, new)  # noqa: E731
            mine = row(now) if verdict.keep else row(kept)
            if verdict.best:
                best = put(best, mine)
            if verdict.stage_over:
                mine = row(best)
            kept = put(kept, mine)
            good = reports[reports[:, r, 2] > 0, r]
            rows.append(
                {
                    "phase": phase.name,
                    "seed": seeds[r],
                    "stage": at[0] + 1,
                    "period": before.period + 1,
                    "repeats": before.repeats,
                    "unroll": unroll,
                    "alpha": stage.alpha,
                    "meta_loss": float(good[:, 0].mean()) if len(good) else None,
                    "distance": float(good[:, 1].mean()) if len(good) else None,
                    "validation_unroll": stage.validation_unroll,
                    "incoming": before.incoming,
                    "validation_loss": float(losses[r].mean()),
                    "validation_error": float(losses[r].std(ddof=1) / math.sqrt(validations)),
                    "verdict": "diverged" if progress[r].diverged else verdict.word,
                    "skipped": skipped,
                }
            )
        note(phase, rows, best, now, trained - begun, time.monotonic() - trained)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="npz of inputs uint8 [N, 28, 28] and labels [N]")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--meta-batch", type=int, default=1)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--late-rates", type=float, nargs="+", help="of stages 3 and 4, one a seed")
    parser.add_argument("--periods", type=int, help="of every stage, in place of the preset's")
    parser.add_argument("--cache", help="directory of compiled programs")
    parser.add_argument("--measure", type=int, metavar="N", help="time N updates of each kind")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop before so long")
    options = parser.parse_args()
    started = time.monotonic()
    if options.cache:
        jax.config.update("jax_compilation_cache_dir", options.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    options.output.mkdir(parents=True, exist_ok=True)
    loaded = np.load(options.data)
    data = (
        jnp.asarray(loaded["inputs"].reshape(-1, 28, 28)),
        jnp.asarray(loaded["labels"], jnp.int32),
    )
    seeds, m = options.seeds, options.meta_batch
    preset = curriculum.PRESETS[options.preset]
    from dataclasses import replace

    base = preset.schedule
    global TRUNCATION
    TRUNCATION = base.truncation
    stages = curriculum.amalgamation_stages(preset.unrolls, preset.alphas, preset.last_validation)
    schedule = replace(base, stages=stages, meta_batch=m, period=base.period // base.meta_batch * m)
    if n := options.periods:
        schedule = replace(schedule, min_periods=n, max_periods=n, patience=n)
    choice = curriculum.choice_schedule(schedule, preset.choice_unrolls, preset.choice_validation)
    mixer = Choice(get_pool("large"))
    phases = (
        Phase(0, "choice", Job(mixer, ()), choice, False),
        Phase(1, "policy", Job(RNNProp(), (mixer,)), schedule, True),
    )
    workers, v = ThreadPoolExecutor(12), schedule.validation_trajectories
    zeros = [[jnp.zeros_like(w) for w in fresh(mixer, seeds).weights]]
    futures = [
        compile_programs(workers, phases[0].job, data, len(seeds), m, v, False, []),
        compile_programs(workers, phases[1].job, data, len(seeds), m, v, False, zeros),
    ]

    def say(text):
        print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)
        with (options.output / "log.txt").open("a") as file:
            file.write(f"{time.monotonic() - started:7.1f} s  {text}\n")

    say(f"{jax.devices()} replicas {len(seeds)} meta-batch {m}")

    def rates(phase, stage, period):
        if phase == 1 and stage >= 2 and options.late_rates:
            return options.late_rates
        return [1e-3] * len(seeds)

    if options.measure:
        for phase, future in zip(phases, futures, strict=True):
            programs = Programs(*(f.result() for f in future))
            say(f"{phase.name}: compiled")
            keys = [[[s, 0, 0, k] for k in range(m)] for s in seeds]
            state = fresh(phase.job.rule, seeds)
            taught = zeros if phase.job.teachers else []
            cut = drawn(workers, keys, 0, TRUNCATION, len(data[1]))
            t = programs.warm_up(data, *begin(keys, phase.scaled), cut)
            rate = jnp.ones(len(seeds)) * 1e-3
            for _k in range(options.measure):
                begun = time.monotonic()
                state, t, report = programs.update(
                    state, taught, data, t, cut, jnp.float32(0.1), rate
                )
                report = np.asarray(report)
                each = 1e3 * (time.monotonic() - begun) / TRUNCATION
                say(f"update {each:.2f} ms a step {report[0]}")
            keys = [[[s, 0, 1, k] for k in range(v)] for s in seeds]
            cut = drawn(workers, keys, 0, TRUNCATION, len(data[1]))
            t = programs.warm_up_alone(data, *begin(keys, False), cut)
            for _k in range(2):
                begun = time.monotonic()
                t, losses = programs.rehearse(state.weights, data, t, cut)
                np.asarray(losses)
                say(f"rehearse {1e3 * (time.monotonic() - begun) / TRUNCATION:.2f} ms a step")
        return

    table, shots = [], {}

    def note(phase, rows, best, now, training, validating):
        table.extend(rows)
        for row in rows:
            row["elapsed"] = time.monotonic() - started
        losses = " ".join(
            f"{r['validation_loss']:+.3f}{'*' * (r['verdict'] == 'best')}" for r in rows
        )
        first = rows[0]
        say(
            f"{phase.name} {first['stage']}.{first['period']} in {first['incoming']:+.3f} "
            f"[{training:.1f}+{validating:.1f} s] {losses}"
        )
        (options.output / "periods.json").write_text(json.dumps(table))
        place = f"{phase.name}.{first['stage']}.{first['period']}"
        for kind, tree in (("best", best), ("now", now)):
            for k, w in enumerate(tree.weights):
                shots[f"{place}.{kind}.{k}"] = np.asarray(w)
        np.savez(options.output / ".policies.npz", **shots)
        os.replace(options.output / ".policies.npz", options.output / "policies.npz")
        if time.monotonic() - started > options.seconds:
            say("no time left")
            sys.exit(3)

    previous = []
    for phase, future in zip(phases, futures, strict=True):
        programs = Programs(*(f.result() for f in future))
        say(f"{phase.name}: compiled")
        weights = [np.random.default_rng([s, phase.number, INITIAL]) for s in seeds]
        state = fresh(phase.job.rule, [int(g.integers(2**20)) for g in weights])
        best = run_phase(phase, programs, seeds, data, previous, state, rates, workers, note)
        previous = [best.weights]
    say("done")


if __name__ == "__main__":
    main()
