"""From a problem to a task: its data read, and what cannot be done refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import tensorflow as tf

from l2o import problems
from l2o.problems import (
    PROBLEMS,
    Dataset,
    DatasetUnavailable,
    Problem,
    ProblemError,
    get_problem,
)
from l2o.tasks.batches import rows
from l2o.tasks.checks import checked
from l2o.tasks.examples import BATCH_SIZE, as_examples, digest
from l2o.tasks.privacy import check_network, check_python
from l2o.tasks.task import Task, loss_and_gradient

# Of settings, what has the names of layers, which Keras numbers as they are made.
_NAMES = {"name", "inbound_nodes", "input_layers", "output_layers"}
_STARTS_ALIKE = (
    "makes the same initial weights every time, so all unrolls and all repeats start from them; if "
    "that is not meant, it should set no seed, and make each initializer anew"
)


def load_task(
    problem: Problem | str,
    data: str = "auto",
    data_dir: str | None = None,
    *,
    first_order: bool = True,
    positive: bool = False,
    loaded: MutableMapping[str, Dataset] | None = None,
    report: Callable[[str], None] = print,
) -> Task:
    """A problem with its data in memory; what cannot be done is refused.

    Args:
        problem: The problem, or its name; see `l2o.problems.get_problem`.
        data: Of a dataset by name: "auto", "tfds" or "digits"; see `l2o.problems.load_dataset`.
        data_dir: Where that is, if not where TFDS looks by itself.
        first_order: Whether it need not be differentiated twice.
        positive: Whether its loss must be positive.
        loaded: Datasets by name, which are not loaded again; this one is added.
        report: Told what data it is, and what may not be meant.

    Raises:
        ProblemError: If it cannot be had, or used.
    """
    problem = get_problem(problem) if isinstance(problem, str) else problem
    if not isinstance(problem, Problem):
        raise ProblemError(
            "A problem is an l2o.Problem(model_fn, data), or a name. Received: a "
            f"{type(problem).__name__}"
        )
    if problem.private:
        check_python()
    read = partial(_dataset, problem, data, data_dir, {} if loaded is None else loaded, report)
    if problem is PROBLEMS.get(problem.name):  # which is known to be good
        task = Task(problem, read())
        if not task.steps_per_epoch:
            raise DatasetUnavailable(
                f"{task.dataset.name} has {task.dataset.sizes[0]} training examples, and a batch "
                f"of {task.name} holds {task.batch_size}"
            )
    else:
        try:
            task = _own_task(problem, read, first_order, positive, report)
        except ProblemError as error:
            if not problem.name or isinstance(error, DatasetUnavailable):
                raise
            raise ProblemError(f"{problem.name}: {error}") from error
    if problem.private:
        check_network(task.model)
    return task


def _dataset(
    problem: Problem,
    data: str,
    data_dir: str | None,
    loaded: MutableMapping[str, Dataset],
    report: Callable[[str], None],
) -> Dataset:
    """The data that a problem has by name, as the problem has it."""
    if problem.data not in loaded:
        loaded[problem.data] = problems.load_dataset(problem.data, data, data_dir, report)
        report(f"Data: {loaded[problem.data].description}")
    dataset = loaded[problem.data]
    return problem.prepare(dataset) if problem.prepare else dataset


def _own_task(
    problem: Problem,
    read: Callable[[], Dataset],
    first_order: bool,
    positive: bool,
    report: Callable[[str], None],
) -> Task:
    named = isinstance(problem.data, str)
    if named and not (problem.validation is None is problem.test):
        raise ProblemError(f"{problem.data} brings its own examples for validation and test")
    dataset, batch_size = (read(), None) if named else _own_dataset(problem)
    problem = replace(problem, batch_size=_batch_size(problem, batch_size))
    task = checked(Task(problem, dataset), first_order, positive)
    network, splits, mark = described_network(task), [dataset.train], ""
    if not problem.name:
        kind, weights = type(task.model).__name__, task.layout.size
        problem = replace(problem, name=f"own {kind} of {weights:,} weights")
    if dataset.sizes[1]:
        splits += [dataset.validation, dataset.test]
        mark = f", network {hashlib.sha256(repr(network).encode()).hexdigest()[:4]}"
    name = dataset.name if named else f"own data {digest(*splits)}"
    dataset = replace(dataset, name=name + mark, requested=dataset.in_place_of)
    if not named:
        report(f"Data: {dataset.description}")
    if starts_alike(task):
        report(f"Note: model_fn of {problem.name} {_STARTS_ALIKE}")
    return Task(problem, dataset, network)


def _own_dataset(problem: Problem) -> tuple[Dataset, int | None]:
    """Arrays as a dataset, and the batch size that they have themselves."""
    train, batch_size = as_examples(problem.data)
    validation, test = (
        part if part is None or part == () else as_examples(part, name)[0]
        for part, name in ((problem.validation, "validation"), (problem.test, "test"))
    )
    if validation is None:
        count = len(train.labels)
        kept = count - min(5_000, count // 6)
        if kept == count:
            raise ProblemError(f"{kept} examples are too few to split a sixth off for validation")
        train, validation = rows(train, slice(kept)), rows(train, slice(kept, None))
    nothing = rows(train, slice(0))
    dataset = Dataset("own data", train, validation or nothing, test or nothing)
    _compare(dataset)
    return dataset, batch_size


def _batch_size(problem: Problem, own: int | None) -> int:
    """Examples a step, by the problem, its data or the default."""
    given = problem.batch_size
    if given is not None and (not isinstance(given, Integral) or given < 1):
        raise ProblemError(f"batch_size must be a whole number of at least 1. Received: {given!r}")
    if given and own and given != own:
        raise ProblemError(f"data is batched by {own}. Received: batch_size={given}")
    return int(given or own or BATCH_SIZE)


def starts_alike(task: Task) -> bool:
    """Whether initial weights that are not all constants are the same whatever the seed."""
    one, other = (task.initial(seed)[0] for seed in (0, 1))
    tensors = map(np.asarray, task.layout.unflatten(one))
    return np.array_equal(one, other) and any(np.any(t != t.ravel()[:1]) for t in tensors)


def _compare(dataset: Dataset) -> None:
    """Refuses splits whose examples are not like those to train on."""
    for name in ("validation", "test"):
        for which in ("inputs", "labels"):
            one, other = (
                getattr(split, which) for split in (dataset.train, getattr(dataset, name))
            )
            if (one.shape[1:], one.dtype) != (other.shape[1:], other.dtype):
                raise ProblemError(
                    f"{name}'s {which} must be like those to train on, {one.dtype} of shape "
                    f"{one.shape[1:]}. Received: {other.dtype} of shape {other.shape[1:]}"
                )


def described_network(task: Task) -> dict[str, Any]:
    """What tells a network and its loss from others, so far as that can be seen.

    Its tensors, a digest of its layers' and its loss's settings, and what a first batch gives.
    """
    parameters, carried = tf.nest.map_structure(tf.constant, task.initial(0))
    batch = tf.nest.map_structure(tf.constant, rows(task.dataset.train, slice(task.batch_size)))
    first, gradient, _ = loss_and_gradient(task, parameters, carried, batch)
    layers = task.model._flatten_layers(include_self=False)
    settings = [_settings(part) for part in (*layers, task.problem.loss)]
    return {
        "batch_size": task.batch_size,
        "tensors": [f"{v.name} {list(v.shape)}" for v in task.model.trainable_variables],
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8],
        "first_loss": f"{float(first):.4g}",
        "first_gradient": f"{float(tf.norm(gradient)):.4g}",
    }


def _settings(part: Any) -> Any:
    """A layer, a loss or a value of their settings, as the same in every process."""
    if isinstance(part, dict):
        return {str(key): _settings(part[key]) for key in part.keys() - _NAMES}
    if isinstance(part, list | tuple):
        return [_settings(value) for value in part]
    if part is None or isinstance(part, bool | int | float | str):
        return part
    kind = getattr(part, "__qualname__", type(part).__qualname__)
    try:
        return [kind, _settings(part.get_config())]
    except Exception:  # nothing that has settings, or a layer that does not tell them
        return kind
