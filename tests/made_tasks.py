"""Tasks of examples that a test has at hand."""

from l2o.problems import Batch, Dataset, Problem
from l2o.tasks.batches import rows
from l2o.tasks.task import Task


def dataset_of(train: Batch, name: str = "made up") -> Dataset:
    """Examples to train on, and no others."""
    nothing = rows(train, slice(0))
    return Dataset(name, train, nothing, nothing)


def task_of(model_fn, train: Batch, batch_size: int, loss=None) -> Task:
    """A network on these examples."""
    return Task(Problem(model_fn, loss=loss, batch_size=batch_size), dataset_of(train))


def with_data(task, train: Batch, batch_size: int):
    """A task of a test's own, which then has these examples too."""
    task.dataset, task.batch_size, task.name = dataset_of(train), batch_size, "made up"
    return task
