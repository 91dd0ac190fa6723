"""A whole run, from a problem to a policy: `l2o.train`, and `l2o.amalgamate`, which is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import l2o
from l2o.amalgamation.plan import Meta, Phase, inner_steps_left
from l2o.amalgamation.presets import default_problems
from l2o.amalgamation.settings import CHOICES, Settings, check_names, get_preset, with_choices
from l2o.amalgamation.trainer import Stopped, Trainer
from l2o.errors import RunError
from l2o.policies.checkpoint import Policy, fingerprint, load_policy
from l2o.problems.catalog import expanded
from l2o.problems.dataset import Dataset
from l2o.problems.problem import Problem
from l2o.rules import UpdateRule, get_pool
from l2o.runs.cluster import check_place, open_directory, workers
from l2o.runs.devices import make_strategy
from l2o.runs.directory import CONFIG
from l2o.runs.display import Display
from l2o.runs.files import directory_or_temporary
from l2o.runs.lock import move_aside
from l2o.runs.quiet import untold_tracing
from l2o.tasks.keras_loss import Loss
from l2o.tasks.load import load_task
from l2o.tasks.task import Task


def meta_train(
    phases: tuple[Phase, ...],
    meta: Meta,
    tasks: Sequence[Task],
    strategy: tf.distribute.Strategy,
    directory: Path,
    origin: dict[str, Any],
    tensorboard: bool = False,
    named: bool = True,
) -> Policy:
    """Trains in a run directory, or goes on with the run that is there, and shows how it goes.

    Sets the global seeds, and TensorFlow's operations to be repeatable, for the whole process.

    Args:
        phases: In order.
        meta: Settings.
        tasks: What it is trained on.
        strategy: A `tf.distribute` strategy.
        directory: Where the run is kept.
        origin: From `origin_of`.
        tensorboard: Whether to write event files.
        named: Whether to say where the run is.

    Raises:
        DirectoryError: If the directory cannot be used, or holds another run.
        Stopped: After SIGINT or SIGTERM, once what there is has been saved.
        Diverged: If it cannot recover.
        RunError: If there are not examples enough, or another worker is gone.
    """
    described = asdict(meta)
    if meta.evolution is None:  # as a run that was begun by an older version has it
        del described["evolution"]
    config = origin | {"meta": described, "phases": [_described(p) for p in phases]}
    versions = {"l2o": l2o.__version__, "tensorflow": tf.__version__, "keras": keras.__version__}
    card = config | {"seed": meta.seed, "versions": versions}
    if missing := _all([task.dataset.in_place_of for task in tasks]):
        card["in_place_of"] = missing
    if meta.perturbation:
        card["perturbation"] = asdict(meta.perturbation)
    with (
        open_directory(directory, config) as run,
        closing(Display(run.path, partial(inner_steps_left, phases), tensorboard)) as display,
    ):
        keras.utils.set_random_seed(meta.seed)
        tf.config.experimental.enable_op_determinism()
        trainer = Trainer(phases, meta, tasks, strategy, run, card, display)
        if named:
            again = ", which is over" if trainer.over else ", which is gone on with"
            again *= trainer.resumed
            print(f"Run directory: {directory}{again}", flush=True)
        try:
            policy = trainer.run()
        except tf.errors.OpError as error:
            if not workers():
                raise
            raise RunError(
                "A worker is gone, so this one ends too. The same commands go on from the last "
                "checkpoint"
            ) from error
        saved = run.path / phases[-1].name
        if not saved.exists():  # of another worker, which keeps the files
            return policy
        policy = load_policy(saved)
        loss = policy.card["validation"]["validation_loss"]
        if loss > 0:
            print(
                f"Warning: with this policy the loss grows (validation meta loss {loss:+.3f}). "
                "A smaller learning rate, other seeds or longer training may help"
            )
        return policy


def origin_of(
    settings: Settings, tasks: Sequence[Task], strategy: tf.distribute.Strategy
) -> dict[str, Any]:
    """Where a run's policy comes from, as its configuration and cards say it.

    Args:
        settings: What was chosen.
        tasks: What it is trained on.
        strategy: The devices.
    """
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    pool = settings.teachers
    if not isinstance(pool, str):
        pool = ", ".join(rule.name for rule in get_pool(pool))
    origin: dict[str, Any] = {
        "strategy": settings.scheme,
        "pool": pool if settings.scheme != "none" else "none",
        "problem": _all([task.name for task in tasks]),
        "data": _all([task.dataset.description for task in tasks], "; "),
        "preset": settings.preset,
        "devices": f"{strategy.num_replicas_in_sync} {kind}",
    }
    networks = [None if task.network is None else dict(task.network) for task in tasks]
    if any(networks):
        origin["network"] = networks[0] if len(tasks) == 1 else networks
    return origin


def _all(names: Sequence[str], mark: str = ", ") -> str:
    """Those of several problems, each once."""
    return mark.join(dict.fromkeys(name for name in names if name))


def _described(phase: Phase) -> dict:
    """A phase as the configuration has it."""
    teachers: str | list[dict] = "the policy of the phase before"
    if phase.teachers is not None:
        teachers = [teacher.rule.get_config() for teacher in phase.teachers]
    return {
        "name": phase.name,
        "rule": phase.rule.get_config(),
        "scheme": phase.scheme,
        "teachers": teachers,
        "schedule": asdict(phase.schedule),
        "start": "random" if phase.start is None else fingerprint(phase.start),
    }


def train(
    problem: Problem | Task | str | Sequence[Problem | Task | str] | None = None,
    policy: UpdateRule | str | None = None,
    teachers: Sequence[str | UpdateRule] | str | None = None,
    scheme: str | None = None,
    *,
    preset: Settings | str | None = None,
    seed: int | None = None,
    output: Path | str | None = None,
    fresh: bool = False,
    devices: tf.distribute.Strategy | Sequence[str] | int | None = None,
    data: str = "auto",
    data_dir: str | None = None,
    tensorboard: bool = False,
    **settings,
) -> Policy:
    """Meta-trains an optimizer (Huang et al. 2022): what `l2o train` calls.

    Shows how it goes. Sets the global seeds, and TensorFlow's operations to be repeatable, for the
    whole process.

    Args:
        problem: What it is trained on, or its name: "mnist_cnn", "package.module:function"; or
            several, or a suite ("families"): meta losses are divided by what each has to gain. By
            default "mnist_cnn", and of the recipe "general" the families.
        policy: What is trained: "rnnprop" by default, "original", "scale", or a rule.
        teachers: A pool: "large" (six) by default, "small" or "adam"; or some, each by its name or
            as a rule.
        scheme: How teachers are amalgamated: "choice" by default, "mean", "minmax" or "none".
        preset: "paper", "cpu" or "smoke", or settings of your own; by default "paper" where there
            is a GPU, else "cpu".
        seed: Fixes everything random; 0 by default.
        output: Run directory, in which the same call goes on with a run that was stopped; by
            default a temporary one.
        fresh: Whether a run that is in `output` is moved aside.
        devices: Replicas: how many, or which GPUs ("gpu:0"), or a strategy; all GPUs, or one, by
            default.
        data, data_dir: Of a dataset by name; see `l2o.problems.load_dataset`.
        tensorboard: Whether to write event files too.
        **settings: The other settings by name, as docs/commands.md has them.

    Returns:
        The policy; `l2o.AmalgamatedOptimizer(policy)` takes it.

    Raises:
        TypeError: For a setting that does not exist.
        ValueError: For what cannot be: settings (ValueError), the problem (ProblemError), the
            directory (DirectoryError), too few examples (RunError).
        Diverged: If the run cannot recover; a RunError.
        Stopped: After Ctrl-C, a KeyboardInterrupt; the run is in `output` then, if that was given.
    """
    if preset is None:
        preset = "paper" if tf.config.list_physical_devices("GPU") else "cpu"
    chosen = {"policy": policy, "teachers": teachers, "scheme": scheme, "seed": seed}
    if paper := {"strategy": "scheme", "pool": "teachers"}.keys() & settings:
        raise TypeError(
            f"l2o.train calls them scheme and teachers; l2o.amalgamate has the paper's names. "
            f"Received: {', '.join(sorted(paper))}"
        )
    check_names(settings, CHOICES.keys() - chosen)
    start = preset if isinstance(preset, Settings) else get_preset(preset)
    choices = with_choices(start, chosen | settings)
    phases, meta = choices.phases(), choices.meta
    if not isinstance(devices, tf.distribute.Strategy):
        devices = make_strategy(devices, phases[-1].schedule.meta_batch)
    if output is not None:
        check_place(Path(output), fresh)
    if problem is None:
        problem = default_problems(settings.get("recipe"))
    several = [problem] if isinstance(problem, Problem | Task | str) else list(problem)
    tasks = load_tasks(several, meta, data, data_dir)
    if output is not None and fresh:
        move_aside(Path(output), CONFIG)
    origin = origin_of(choices, tasks, devices)
    with directory_or_temporary(output) as directory, untold_tracing():
        try:
            return meta_train(
                phases, meta, tasks, devices, directory, origin, tensorboard,
                named=output is not None,
            )  # fmt: skip
        except Stopped:
            again = "the same call" + " without fresh=True" * fresh
            kept = f"; the run is kept in {output}, and {again} goes on with it"
            raise Stopped("Stopped" + kept * (output is not None)) from None


def load_tasks(
    problems: Sequence[Problem | Task | str], meta: Meta, data: str, data_dir: str | None
) -> list[Task]:
    """The problems of a run, with their data.

    Args:
        problems: Or their names, or suites'; tasks are as they should be.
        meta: Settings, which say what must be possible with them.
        data, data_dir: See `l2o.problems.load_dataset`.

    Raises:
        ProblemError: If one cannot be had, or used.
        RunError: If there is none, or one is trained with DP-SGD.
    """
    if not problems:
        raise RunError("There is no problem to train on")
    first_order = meta.first_order or meta.evolution is not None
    positive = meta.meta_loss == "log"
    each = [q for p in problems for q in (expanded([p]) if isinstance(p, str) else [p])]
    tasks: list[Task] = []
    loaded: dict[str, Dataset] = {}
    for problem in each:
        task = problem
        if not isinstance(task, Task):
            with untold_tracing():
                task = load_task(
                    task, data, data_dir,
                    first_order=first_order, positive=positive, loaded=loaded,
                )  # fmt: skip
            print(f"Problem: {task.name}, batches of {task.batch_size}", flush=True)
        if task.problem.private:
            raise RunError(
                f"{task.name} is trained with DP-SGD, which is for evaluation; train on the same "
                "problem without it"
            )
        tasks.append(task)
    return tasks


def amalgamate(
    model_fn: Callable[[], keras.Model] | Sequence[Problem | str],
    data: Any = None,
    loss: Loss = None,
    pool: Sequence[str | UpdateRule] | str | None = None,
    strategy: str | None = None,
    *,
    batch_size: int | None = None,
    **settings,
) -> Policy:
    """Meta-trains an optimizer on a network and data of yours: `train`, under the paper's names.

    Args:
        model_fn: Makes the Keras model, with fresh weights at every call; or several problems in
            one training, each an `l2o.Problem` or a name, which bring data, loss and batch size.
        data: Arrays (x, y) or (x, y, weight), or a finite, batched `tf.data.Dataset` of such, all
            of which is trained on. uint8 inputs of three dimensions or more are pixels, which the
            network sees divided by 255.
        loss: The name of a Keras loss, a `keras.losses.Loss`, or a function (labels, outputs) ->
            one loss an example, as for `compile`; softmax cross-entropy of class indices, from
            logits, by default.
        pool: The teachers; see `train`.
        strategy: The scheme; see `train`.
        batch_size: Examples a step, for arrays; 128 by default.
        **settings: All else that `train` takes, by name.

    Returns:
        The policy; `l2o.AmalgamatedOptimizer(policy)` takes it.

    Raises:
        TypeError: For a setting that does not exist; for all else see `train`.
    """
    if own := {"scheme", "teachers"} & settings.keys():
        raise TypeError(
            "l2o.amalgamate calls them strategy and pool; l2o.train has the library's names. "
            f"Received: {', '.join(sorted(own))}"
        )
    problem: Any = model_fn
    if callable(model_fn):
        problem = Problem(model_fn, data, validation=(), loss=loss, batch_size=batch_size)
    elif not (data is loss is batch_size is None):
        raise TypeError("Several problems bring their own data, loss and batch size")
    return train(problem, teachers=pool, scheme=strategy, **settings)
