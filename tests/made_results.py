"""Results made up for tests."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

from l2o.evaluation.results import VERSION, Result


def made_evaluation(
    optimizer: str,
    losses: Sequence[float],
    problem: str = "mnist_cnn",
    data: str = "mnist",
    in_place_of: str = "",
    origin: str | None = None,
    replicate: int = 1,
    repeat: int = 1,
    epochs: int | None = None,
    steps: int = 100,
    seconds: float = 2.0,
    epsilon: float = inf,
) -> list[Result]:
    """The rows of an evaluation from its validation losses, epoch 0 first; inf is divergence."""
    rows = []
    for epoch, loss in enumerate(losses):
        finite = isfinite(loss)
        accuracy = 1 / (1 + max(loss, 0)) if finite else 0.0
        rows.append(
            Result(
                version=VERSION, problem=problem, data=data,
                in_place_of=in_place_of, optimizer=optimizer,
                origin=origin or f"{optimizer}-{replicate}", replicate=replicate, repeat=repeat,
                seed=1000 + repeat, epochs=epochs or len(losses) - 1, epoch=epoch,
                steps=epoch * steps, seconds=epoch * seconds,
                cpu_seconds=1.5 * epoch * seconds, train_loss=0.9 * loss,
                train_accuracy=accuracy, validation_loss=loss, validation_accuracy=accuracy,
                test_loss=1.1 * loss, test_accuracy=max(accuracy - 0.01, 0.0),
                diverged_at=-1 if finite else (epoch - 1) * steps + 7,
                epsilon=epsilon * epoch if isfinite(epsilon) else inf,
                delta=1e-5 if isfinite(epsilon) else 0.0,
                privacy="RDP, Poisson sampling assumed" if isfinite(epsilon) else "",
            )
        )  # fmt: skip
    return rows
