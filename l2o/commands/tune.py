"""`l2o tune`: the grid search of the teachers' learning rates, in several processes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2o.amalgamation.plan import MOST_SEED
from l2o.commands.flags import (
    add_data_flags,
    add_problem_flag,
    add_scheduler_flag,
    check_scheduler,
    check_trainable,
    in_float32,
)
from l2o.commands.terminal import STOPPED, Parser, again, count, positive, run_command, whole
from l2o.errors import UserError
from l2o.evaluation.made import check_made, keep_made, made_with, read_made
from l2o.evaluation.tables import TableError, read_table
from l2o.evaluation.tuning import (
    RATES,
    Trial,
    choose,
    table,
    write_trials,
)
from l2o.rules import WarmUp
from l2o.rules.pools import TEACHERS, TUNED_RATES, get_teacher
from l2o.runs.devices import cores
from l2o.runs.files import write_atomically
from l2o.runs.jobs import Workers, gpus_for, unless_unwanted
from l2o.runs.lock import LockedDirectory, check_free, move_aside
from l2o.runs.progress import ProgressBar, duration
from l2o.tasks.load import load_task
from l2o.tasks.task import Task

TRIALS = "trials.csv"
DESCRIPTION = """\
Searches the teachers' learning rates: fits a problem with every teacher at
every rate, writes the table and prints the best.

  {prog}                           as the pools' rates were found
  {prog} --problem digits_cnn --epochs 15 --rates 0.001 0.01 0.1
  {prog} --problem mine:tumours    your own: docs/amalgamate.md

Ctrl-C stops it, and the same command goes on."""


def parser(prog: str = "l2o tune") -> Parser:
    """The command line.

    Args:
        prog: How the command was called.
    """
    # fmt: off
    p = Parser(prog, DESCRIPTION)
    g = p.add_argument_group("what is tried")
    add_problem_flag(g)
    g.add_argument("--epochs", type=count, default=5, metavar="E", help="of a fit; default 5")
    g.add_argument("--rates", type=positive, nargs="+", metavar="RATE", default=RATES,
                   help="default the 1-2-5 series from 0.0005 to 1")
    g.add_argument("--seeds", type=count, default=3, metavar="S", help="seeds a rate; default 3")
    g.add_argument("--seed", type=whole, default=0, metavar="SEED",
                   help="the first of them; default 0")
    add_data_flags(p)
    g = p.add_argument_group("run")
    g.add_argument("--jobs", type=count, metavar="J",
                   help="processes of one thread each, where there is no GPU; default one a core")
    add_scheduler_flag(g)
    g.add_argument("--output", metavar="DIR", type=Path, default=Path("runs/tuning"),
                   help=f"where {TRIALS} and table.md are kept; default runs/tuning")
    g.add_argument("--fresh", action="store_true",
                   help="move the search that is in the directory aside and begin anew")
    # fmt: on
    return p


def main(arguments: list[str] | None = None, prog: str = "l2o tune") -> None:
    """Runs the command; exits with status 0, 2 for a user's error, 130 when stopped."""
    run_command(lambda: _main(parser(prog).parse_args(arguments)))


def _main(options: argparse.Namespace) -> int:
    check_trainable([options.problem], options)
    check_scheduler(options)
    in_float32()
    for name, most in (("seeds", 10_000), ("jobs", 1_000)):
        if (value := getattr(options, name) or 1) > most:
            raise UserError(f"--{name} must be at most {most}. Received: {value}")
    if options.seed > (most := MOST_SEED - options.seeds + 1):
        raise UserError(f"--seed must be at most {most}. Received: {options.seed}")
    gpus = gpus_for(options.jobs or 1)
    jobs = options.jobs or (1 if gpus else cores())
    settings = Search(
        problem=options.problem,
        data=options.data or "auto",
        data_dir=options.data_dir,
        rates=tuple(dict.fromkeys(options.rates)),
        seeds=options.seeds,
        first_seed=options.seed,
        epochs=options.epochs,
    )
    place = settings.problem, settings.data, settings.data_dir
    try:
        with Workers(jobs, options.scheduler) as workers:
            tune(settings, lambda: load_task(*place), options.output, workers, options.fresh)
    except KeyboardInterrupt:
        print(f"\nStopped. The fits that ended are kept; {again(options.fresh)} goes on.")
        return STOPPED
    return 0


@dataclass(frozen=True)
class Search:
    """What is tried.

    Attributes:
        problem: Name of the problem.
        data: "auto", "tfds" or "digits".
        data_dir: Where the data is, if not where TFDS looks by itself.
        teachers: Names.
        rates: The grid.
        seeds: Number of seeds a rate.
        first_seed: The first of them.
        epochs: Length of a fit.
    """

    problem: str = "mnist_cnn"
    data: str = "auto"
    data_dir: str | None = None
    teachers: tuple[str, ...] = tuple(TEACHERS)
    rates: tuple[float, ...] = RATES
    seeds: int = 3
    first_seed: int = 0
    epochs: int = 5


def search(
    settings: Search,
    data: Any,
    path: Path,
    workers: Workers,
    progress: Callable[[int, int, Trial | None], None],
) -> list[Trial]:
    """Runs the trials that `path` does not have yet, and adds each to it as it ends.

    Args:
        settings: What is tried.
        data: The dataset that will really be used.
        path: The table, made if it is not there.
        workers: What fits are spread over.
        progress: Called with trials done, trials in all, and the newest.

    Returns:
        The trials of this search.

    Raises:
        TableError: If `path` is no table of trials, or one of another problem, data or release.
        UserError: If a fit kills its process again and again.
    """
    trials = read_table(path, Trial) if path.exists() else []
    mine = (settings.problem, data.name, settings.epochs)
    for trial in trials:
        theirs = (trial.problem, trial.dataset, trial.epochs)
        if mine != theirs:
            raise TableError(
                f"{path} holds trials of {theirs[0]} on {theirs[1]}, {theirs[2]} epochs; asked "
                f"for {mine[0]} on {mine[1]}, {mine[2]} epochs. Choose another --output."
            )
    made = read_made(path.parent, now=made_with([data]))
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    wanted = [(t, r, s) for s in seeds for r in settings.rates for t in settings.teachers]
    known = {_key(trial) for trial in trials}
    missing = [key for key in wanted if key not in known]
    there = len(wanted) - len(missing)
    if missing:
        keep_made(path.parent, made)
    progress(there, len(wanted), None)
    results = workers.spread(
        _run_trial, missing, _start_worker, (settings, made_with([data])),
        lambda teacher, rate, seed: f"{settings.problem} with {teacher} at {rate:g} (seed {seed})",
    )  # fmt: skip
    for done, trial in enumerate(results, start=there + 1):
        trials.append(trial)
        write_trials(path, trials)
        progress(done, len(wanted), trial)
    return [trial for trial in trials if _key(trial) in set(wanted)]


def _key(trial: Trial) -> tuple[str, float, int]:
    return trial.teacher, trial.rate, trial.seed


def _start_worker(settings: Search, made: dict[str, str]) -> tuple:
    """What a process holds: the settings and the task."""
    place = settings.problem, settings.data, settings.data_dir
    task = load_task(*place, report=lambda text: None)
    check_made(made, made_with([task.dataset]))
    return settings, task


def _run_trial(held: tuple, teacher: str, rate: float, seed: int) -> Trial:
    import tensorflow as tf

    from l2o.evaluation.fit import Fit

    settings, task = held
    train, validation = tf.nest.map_structure(
        tf.constant, (task.dataset.train, task.dataset.validation)
    )
    fit = Fit(task, WarmUp(get_teacher(teacher, rate)), (), train, validation, task.batch_size)
    last = fit.run(seed, settings.epochs, unless_unwanted).epochs[-1]
    return Trial(
        settings.problem,
        task.dataset.name,
        settings.epochs,
        teacher,
        rate,
        seed,
        last.validation_loss,
        last.validation_accuracy,
        -1 if last.diverged_at is None else last.diverged_at,
    )


def tune(
    settings: Search,
    load: Callable[[], Task],
    output: Path,
    workers: Workers,
    fresh: bool = False,
) -> None:
    """Runs or resumes the search, then writes and prints the table and the chosen rates.

    Args:
        settings: What is tried.
        load: Gives the task; called once the directory is found usable.
        output: Directory for trials.csv and table.md.
        workers: What fits are spread over.
        fresh: Whether a search that is in the directory is moved aside.

    Raises:
        DirectoryError: If the directory cannot be written, is in use, or holds something else.
        TableError: If it holds another search.
        UserError: If the fits are too short for a rate to matter.
    """
    check_free(output, TRIALS, fresh)
    task = load()
    data, per_epoch, warmup = task.dataset, task.steps_per_epoch, WarmUp.steps
    if settings.epochs * per_epoch <= warmup:
        raise UserError(
            f"--epochs must be at least {warmup // per_epoch + 1}: an epoch of {data.name} has "
            f"{per_epoch} steps, and the first {warmup} steps are warm-up, the same at every rate. "
            f"Received: {settings.epochs}"
        )
    if fresh:
        move_aside(output, TRIALS)
    with LockedDirectory(output, TRIALS) as folder:
        _tune(settings, data, output, workers)
        folder.tidy()


def _tune(settings: Search, data, output: Path, workers: Workers) -> None:
    bar, start = ProgressBar("tuning"), time.monotonic()
    first = 0

    def progress(done: int, total: int, trial: Trial | None) -> None:
        nonlocal first
        if trial is None:
            first = done
            if done:
                bar.say(f"Going on with {output}: {done} of {total} fits are there.")
            return
        left = (time.monotonic() - start) / (done - first) * (total - done)
        loss = f"{trial.validation_loss:.4f}" if trial.diverged_at < 0 else "diverged"
        text = f"{duration(left)} left | {done}/{total} {trial.teacher} {trial.rate:g}: {loss}"
        bar.show(done, total, text)

    trials = search(settings, data, output / TRIALS, workers, progress)
    bar.close()
    text = (
        f"# Teachers' learning rates\n\nValidation loss of {settings.problem} after "
        f"{settings.epochs} epochs, mean of {settings.seeds} seeds; each teacher's best is bold. "
        f"Written by `l2o tune`; every fit is in {TRIALS}.\n\n"
        f"Data: {data.description}\n\n{table(trials)}"
    )
    write_atomically(output / "table.md", text)
    print(text)
    for name in settings.teachers:
        best = choose(trials, name)
        rate = "none, every rate diverged" if best.rate is None else f"{best.rate:g}"
        print(f"{name:10} {rate:>6}  (in the pools: {TUNED_RATES[name]:g})")
    print(f"Written to {output}")
