"""Amalgamates several replicates at once on one GPU, in JAX: hours of two cores in minutes.

    python tools/replicates.py mnist.npz runs/choice-large --strategy choice --seeds 0 1 2 3

What `train.py --preset cpu` does on the Train problem, with l2o's own rules and curriculum and the
unroll of jax_unroll.py, in which all replicates take their steps together. It needs Keras and JAX,
but no TensorFlow; mnist.npz holds the training examples, inputs uint8 [N, 28, 28] and labels [N].
Random numbers are train.py's, except for initial weights. Each replicate's policy and periods.csv
are in a directory of its number, which `tools/ship.py` takes.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jax_unroll as unroll  # noqa: E402
import numpy as np  # noqa: E402
from draws import BATCH, Draws, begin, read_examples  # noqa: E402
from jax_unroll import LAYOUT, Cut, Job, MetaState  # noqa: E402

import l2o  # noqa: E402
from l2o.amalgamation import curriculum  # noqa: E402
from l2o.amalgamation.draws import INITIAL, TRAINING, VALIDATION  # noqa: E402
from l2o.rules import Choice, Layout, Original, RNNProp, Scale, WarmUp, get_pool  # noqa: E402
from l2o.rules.analytical import Adam  # noqa: E402
from l2o.rules.pools import POOLS  # noqa: E402

WARMUP, RATE = 100, 1e-3
PLACES = ("data", "output", "seeds")  # of the options, what a card does not repeat
POLICIES = {rule.name: rule for rule in (RNNProp, Original, Scale)}
COLUMNS = ("phase", "stage", "period", "repeats", "unroll", "alpha", "meta_loss", "distance",
           "validation_unroll", "incoming", "validation_loss", "validation_error", "verdict",
           "skipped", "updates", "seconds")  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """A curriculum of one policy; `scaled` as in random scaling."""

    number: int
    name: str
    job: Job
    schedule: Any
    scaled: bool


def phases_of(options: argparse.Namespace) -> list[Phase]:
    """What is trained, in order."""
    preset, m = curriculum.PRESETS[options.preset], options.meta_batch
    stages = curriculum.amalgamation_stages(
        options.unrolls or preset.unrolls,
        options.alphas or preset.alphas,
        options.last_validation or preset.last_validation,
    )
    schedule = replace(
        preset.schedule,
        stages=stages,
        truncation=options.truncation or preset.schedule.truncation,
        meta_batch=m,
        period=preset.schedule.period * m,  # as many meta-updates
    )
    rule, pool = POLICIES[options.policy](), get_pool(options.pool)
    disturbed = {"gaussian": options.gaussian, "adversarial": options.adversarial}
    scaled = options.policy == "rnnprop"
    if options.strategy != "choice":
        teachers = () if options.strategy == "none" else pool
        job = Job(rule, teachers, options.strategy == "minmax", **disturbed)
        return [Phase(0, "policy", job, schedule, scaled)]
    mixed = curriculum.choice_schedule(schedule, preset.choice_unrolls, preset.choice_validation)
    choice = Choice(pool)
    return [
        Phase(0, "choice", Job(choice, **disturbed), mixed, False),
        Phase(1, "policy", Job(rule, (choice,), **disturbed), schedule, scaled),
    ]


def fresh(rule, seeds: list[int]) -> MetaState:
    """States [R, ...] before the first update."""
    return states_of([rule.initial_weights(seed) for seed in seeds])


def states_of(policies: list[list]) -> MetaState:
    """States [R, ...] of policies, by their weights, as no update has been made yet."""
    states = []
    for policy in policies:
        weights = [jnp.asarray(w) for w in policy]
        moments = Adam(RATE).initial_state(Layout.of(weights))
        states.append(MetaState(weights, moments, jnp.zeros((), jnp.int32)))
    return jax.tree.map(lambda *x: jnp.stack(x), *states)


class Programs:
    """The programs of a phase, compiled by several threads from the moment this is made.

    Attributes:
        warm_up, cold: `jax_unroll.warm_up` of [R, M] trajectories, with warm-up and without.
        update: `jax_unroll.meta_update` of [R] replicates.
        warm_up_alone, rehearse: What validation runs, of [R, V] trajectories.
    """

    def __init__(
        self,
        workers: ThreadPoolExecutor,
        phase: Phase,
        data,
        replicas: int,
        held_out: bool,
        rate: float,
    ):
        job, schedule = phase.job, phase.schedule
        alone = job._replace(teachers=())
        m, v = schedule.meta_batch, schedule.validation_trajectories
        states = [jax.eval_shape(lambda r=r: fresh(r, [0] * replicas)) for r in job.teachers]
        taught = [state.weights for state in states]
        state = jax.eval_shape(lambda: fresh(job.rule, [0] * replicas))
        floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        chosen = lambda m, t: jax.ShapeDtypeStruct((replicas, m, t, BATCH), jnp.int32)  # noqa: E731
        data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data)

        def lanes(function, axes):
            return jax.vmap(jax.vmap(function, axes[1]), axes[0])

        def warmed(job, m, steps):
            axes = [(0, None, 0, 0, 0), (None, None, 0, 0, 0)]
            program = lanes(lambda *x: unroll.warm_up(job, *x), axes)
            places = [floats(replicas, m, LAYOUT.size)] * 2
            return program, (state.weights, data, *places, chosen(m, steps))

        update = jax.vmap(lambda *x: unroll.meta_update(job, rate, *x), (0, 0, None, 0, 0, None))
        rehearse = lanes(
            lambda *x: unroll.rehearse(alone, *x), [(0, None, 0, 0), (None, None, 0, 0)]
        )
        warm, warm_alone = warmed(job, m, WARMUP), warmed(alone, v, WARMUP)
        trajectories, judged = jax.eval_shape(warm[0], *warm[1]), jax.eval_shape(*_flat(warm_alone))
        steps = schedule.truncation

        def cut(m):
            seeds = jax.ShapeDtypeStruct((replicas, m), jnp.int32)
            return Cut(chosen(m, steps), chosen(m, steps) if held_out else None, seeds)

        self._futures: dict[str, Future] = {
            name: workers.submit(lambda f, x: jax.jit(f).lower(*x).compile(), function, shapes)
            for name, (function, shapes) in {
                "warm_up": warm,
                "cold": warmed(job, m, 0),
                "warm_up_alone": warm_alone,
                "rehearse": (rehearse, (state.weights, data, judged, cut(v))),
                "update": (update, (state, taught, data, trajectories, cut(m), floats())),
            }.items()
        }

    def __getattr__(self, name: str) -> Callable:
        return self._futures[name].result()


def _flat(program):
    return program[0], *program[1]


@dataclass
class Replicates:
    """The curriculum of all replicates of a phase, which go through it in step.

    One whose period was undone repeats it while the others wait.
    """

    phase: Phase
    programs: Programs
    seeds: list[int]
    data: Any
    draws: Draws
    teachers: list
    workers: ThreadPoolExecutor
    note: Callable[[Phase, int, dict, list], None]

    def run(self, state: MetaState) -> MetaState:
        """Their best states.

        Raises:
            SystemExit: If a replicate diverged, once the others are through.
        """
        schedule, n = self.phase.schedule, range(len(self.seeds))
        progress = [curriculum.Progress() for _ in n]
        kept = best = state
        while open_ := [r for r in n if not (progress[r].finished or progress[r].diverged)]:
            place = min((progress[r].stage, progress[r].period) for r in open_)
            here = [r for r in open_ if (progress[r].stage, progress[r].period) == place]
            stage = schedule.stages[place[0]]
            now, reports = self._practise(kept, stage, place[1], progress)
            if any(progress[r].incoming is None for r in here):
                incoming = self._validate(kept.weights, stage).mean(axis=1)
                for r in here:
                    progress[r] = curriculum.enter(progress[r], float(incoming[r]))
            losses = self._validate(now.weights, stage)
            for r in here:
                before, good = progress[r], reports[:, r, 2] > 0
                loss = float(losses[r].mean())
                progress[r], verdict = curriculum.judge(
                    schedule, before, loss, float(1 - good.mean())
                )
                mine = _row(now if verdict.keep else kept, r)
                best = _put(best, r, mine) if verdict.best else best
                mine = _row(best, r) if verdict.stage_over else mine
                kept = _put(kept, r, mine._replace(skipped=now.skipped[r]))  # they stay counted
                found = reports[good, r].mean(axis=0) if good.any() else np.full(3, np.nan)
                facts = {
                    "phase": self.phase.name,
                    "stage": place[0] + 1,
                    "period": before.period + 1,
                    "repeats": before.repeats,
                    "unroll": stage.unroll(place[1]),
                    "alpha": stage.alpha,
                    "meta_loss": float(found[0]),
                    "distance": float(found[1]),
                    "validation_unroll": stage.validation_unroll,
                    "incoming": before.incoming,
                    "validation_loss": loss,
                    "validation_error": curriculum.standard_error(losses[r]),
                    "verdict": "diverged" if progress[r].diverged else verdict.word,
                    "skipped": int(now.skipped[r]),
                    "updates": len(reports),
                }
                weights = [np.asarray(w[r]) for w in best.weights] if verdict.best else []
                self.note(self.phase, r, facts, weights)
        if lost := [str(self.seeds[r]) for r in n if progress[r].diverged]:
            raise SystemExit(
                f"{self.phase.name} diverged with seeds {', '.join(lost)}, in their last try"
            )
        return best

    def _practise(self, state, stage, period: int, progress) -> tuple[MetaState, np.ndarray]:
        """The states after a period, and the reports [updates, R, 3]."""
        schedule, phase, reports = self.phase.schedule, self.phase, []
        m, warmup = schedule.meta_batch, WARMUP if period >= stage.cold_periods else 0
        for first in range(0, schedule.period, m):
            keys = [
                [[s, phase.number, TRAINING, p.trajectories + first + k] for k in range(m)]
                for s, p in zip(self.seeds, progress, strict=True)
            ]
            early = self._drawn(self.draws.steps, keys, 0, warmup)
            program = self.programs.warm_up if warmup else self.programs.cold
            trajectories = program(state.weights, self.data, *begin(keys, phase.scaled), early)
            for start in range(0, stage.unroll(period), schedule.truncation):
                cut = self._cut(keys, warmup + start, schedule.truncation)
                alpha = np.float32(stage.alpha)
                state, trajectories, report = self.programs.update(
                    state, self.teachers, self.data, trajectories, cut, alpha
                )
                reports.append(report)
        return state, np.asarray(jnp.stack(reports))

    def _validate(self, weights, stage) -> np.ndarray:
        """Meta losses [R, V] on the fixed trajectories."""
        schedule, unrolled = self.phase.schedule, stage.validation_unroll
        some = range(schedule.validation_trajectories)
        keys = [[[s, self.phase.number, VALIDATION, k] for k in some] for s in self.seeds]
        early = self._drawn(self.draws.steps, keys, 0, WARMUP)
        trajectories = self.programs.warm_up_alone(weights, self.data, *begin(keys, False), early)
        total = 0
        for start in range(0, unrolled, schedule.truncation):
            cut = self._cut(keys, WARMUP + start, schedule.truncation)
            trajectories, losses = self.programs.rehearse(weights, self.data, trajectories, cut)
            total = total + losses
        return np.asarray(total) * schedule.truncation / unrolled

    def _cut(self, keys: list, start: int, steps: int) -> Cut:
        """What a truncation of [R, M] trajectories sees."""
        seed = lambda key: np.random.default_rng([*key, 2, start]).integers(2**31)  # noqa: E731
        judged = self._drawn(self.draws.judged, keys, start, steps) if self.draws.held_out else None
        drawn = self._drawn(self.draws.steps, keys, start, steps)
        return Cut(drawn, judged, np.array([[seed(k) for k in row] for row in keys], "int32"))

    def _drawn(self, draw: Callable, keys: list, start: int, steps: int) -> np.ndarray:
        """Batch indices [R, M, steps, B]."""
        flat = [key for row in keys for key in row]
        rows = self.workers.map(lambda key: draw(key, start, steps), flat)
        return np.reshape(list(rows), (len(keys), len(keys[0]), steps, BATCH))


def _row(tree, r: int):
    return jax.tree.map(lambda x: x[r], tree)


def _put(tree, r: int, new):
    return jax.tree.map(lambda x, y: x.at[r].set(y), tree, new)


def parser() -> argparse.ArgumentParser:
    """The command line.

    Flags mean what they mean to train.py, but --meta-batch, which keeps the number of meta-updates,
    and --finetune, which takes a directory for each seed.
    """
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("data", type=Path, help="mnist.npz")
    p.add_argument("output", type=Path, help="directory of the replicates, a new one")
    p.add_argument("--strategy", choices=("choice", "mean", "minmax", "none"), default="choice")
    p.add_argument("--pool", choices=sorted(POOLS), default="large")
    p.add_argument("--policy", choices=sorted(POLICIES), default="rnnprop")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], metavar="S")
    p.add_argument("--preset", choices=("cpu", "smoke"), default="cpu")
    p.add_argument("--unrolls", type=int, nargs="+", metavar="N")
    p.add_argument("--alphas", type=float, nargs="+", metavar="A")
    p.add_argument("--last-validation", type=int, metavar="N")
    p.add_argument("--truncation", type=int, metavar="T")
    p.add_argument("--meta-batch", type=int, default=1, metavar="M", help="as many meta-updates")
    p.add_argument("--learning-rate", type=float, default=RATE, metavar="RATE")
    p.add_argument("--held-out", action="store_true")
    p.add_argument("--finetune", nargs="+", metavar="DIR", help="a policy for each seed, to begin "
                   "with; not for choice")  # fmt: skip
    p.add_argument("--gaussian", type=float, default=0.0, metavar="M", help="relative magnitude")
    p.add_argument("--adversarial", type=float, default=0.0, metavar="M", help="relative magnitude")
    return p


def main() -> None:
    command = parser()
    options = command.parse_args()
    if options.output.exists():
        command.error(f"there is something in {options.output}")
    begin_with = [l2o.load_policy(what) for what in options.finetune or ()]
    if begin_with and (options.strategy == "choice" or len(begin_with) != len(options.seeds)):
        command.error("--finetune takes a policy for each seed, and not the strategy choice")
    inputs, labels = read_examples(options.data)
    data = (jnp.asarray(inputs), jnp.asarray(labels))
    seeds, begun = options.seeds, time.monotonic()
    phases, draws = phases_of(options), Draws(len(labels), options.held_out)
    workers = ThreadPoolExecutor(os.cpu_count())
    programs = [
        Programs(workers, phase, data, len(seeds), options.held_out, options.learning_rate)
        for phase in phases
    ]
    counts = [0] * len(seeds)

    def note(phase: Phase, r: int, facts: dict, weights: list) -> None:
        counts[r] += facts["updates"]
        seconds = round(time.monotonic() - begun, 1)
        facts |= {"updates": counts[r], "seconds": seconds}
        path = options.output / str(r + 1)
        path.mkdir(parents=True, exist_ok=True)
        with (path / "periods.csv").open("a", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            if not file.tell():
                table.writeheader()
            table.writerow(facts)
        if weights:
            validation = ("validation_loss", "validation_unroll", "stage", "period")
            asked = {name: v for name, v in vars(options).items() if name not in PLACES}
            card = asked | {
                "problem": "mnist_cnn",
                "data": f"mnist ({len(labels):,} train, from {options.data.name})",
                "devices": f"{jax.devices()[0].device_kind}, {len(seeds)} replicates at once",
                "seed": seeds[r],
                "versions": {"l2o": l2o.__version__} | {
                    name: importlib.metadata.version(name) for name in ("keras", "jax")
                },
                "phase": phase.name,
                "schedule": asdict(phase.schedule),
                "validation": {name: facts[name] for name in validation},
                "updates": counts[r],
                "seconds": seconds,
            }  # fmt: skip
            l2o.save_policy(path / phase.name, WarmUp(phase.job.rule), weights, card)
        print(
            f"{seconds:7.1f} s  replicate {r + 1} {phase.name} stage {facts['stage']} period "
            f"{facts['period']}: meta loss {facts['meta_loss']:.3f}, validation "
            f"{facts['validation_loss']:.3f} (N {facts['validation_unroll']}), {facts['verdict']}",
            flush=True,
        )

    teachers: list = []
    for phase, compiled in zip(phases, programs, strict=True):
        drawn = [np.random.default_rng([s, phase.number, INITIAL]).integers(2**20) for s in seeds]
        state = fresh(phase.job.rule, [int(draw) for draw in drawn])
        if begin_with:
            state = states_of([policy.weights for policy in begin_with])
        taught = teachers if phase.name == "policy" and teachers else [[]] * len(phase.job.teachers)
        replicates = Replicates(phase, compiled, seeds, data, draws, taught, workers, note)
        teachers = [replicates.run(state).weights]


if __name__ == "__main__":
    main()
