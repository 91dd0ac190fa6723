"""Searches of what there is to tune in a Keras optimizer: rate, decay and schedule.

A search is a number of trials at the points of a quasi-random sequence, the same for every problem.
Each is a fit by itself; the best by its last validation loss is fitted anew on other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from l2o.errors import UserError
from l2o.evaluation.baselines import Candidate, get_candidates
from l2o.evaluation.protocol import Plan, missing, present
from l2o.evaluation.results import Result
from l2o.evaluation.store import ResultsDirectory
from l2o.policies.checkpoint import fingerprint
from l2o.policies.shipped import did_you_mean
from l2o.rules.scheduled import SHAPES
from l2o.tasks.task import Task

TUNED, TRIAL = "tuned:", "trial:"  # what a search's optimizer, and each of its trials, is called
TRIALS = 10
SEED = 1_000_000  # of trials, above the seed of an evaluation's first repeat
GROWTHS = 2  # how often a range may grow
_EDGE, _DECADE = 1 / 8, 10.0  # share of a range (of logarithms) that is its edge; how far it grows


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        rate: Lowest and highest learning rate, log-uniform between.
        decay: Of the weight decay, likewise; None where there is none.
    """

    rate: tuple[float, float]
    decay: tuple[float, float] | None = (1e-3, 0.3)


SPACES = {
    "Adam": Space((1e-4, 3e-2), None),
    "AdamW": Space((1e-4, 3e-2)),
    "Lion": Space((1e-5, 3e-3), (1e-2, 3.0)),
    "Muon": Space((3e-4, 1e-1)),
    "Nadam": Space((1e-4, 3e-2), None),
    "RMSprop": Space((1e-4, 3e-2), None),
    "SGD": Space((1e-3, 1.0), None),
    "ScheduleFreeAdamW": Space((1e-4, 1e-1)),
}


def space_of(word: str) -> tuple[str, Space]:
    """The optimizer and the space that "tuned:NAME" stands for.

    Raises:
        UserError: If there is none.
    """
    known = {f"{TUNED}{name}".lower(): name for name in SPACES}
    if word.lower() not in known:
        allowed = [f"{TUNED}{name}" for name in SPACES]
        raise UserError(
            f"'{word}' cannot be tuned. {did_you_mean(word, allowed)}Allowed: {', '.join(allowed)}"
        )
    name = known[word.lower()]
    return name, SPACES[name]


def names(optimizer: str, space: Space, count: int, seed: int) -> list[str]:
    """Trials, as names of baselines: "keras:AdamW@0.00316+cosine+decay0.01".

    Args:
        optimizer: A name in `SPACES`.
        space: What is searched.
        count: How many; a longer search begins with the shorter one.
        seed: Of the scrambled Sobol sequence.
    """
    from scipy.stats.qmc import Sobol

    sequence = Sobol(3, scramble=True, rng=seed).random_base2(max(count - 1, 1).bit_length())
    found = []
    for rate, decay, shape in sequence[:count]:
        word = f"keras:{optimizer}@{_between(space.rate, rate):.3g}"
        word += f"+{SHAPES[int(shape * len(SHAPES))]}"
        if space.decay:
            word += f"+decay{_between(space.decay, decay):.3g}"
        found.append(word)
    return found


def _between(bounds: tuple[float, float], share: float) -> float:
    low, high = map(math.log, bounds)
    return math.exp(low + share * (high - low))


def better_space(space: Space, rate: float) -> Space | None:
    """The decade beyond the edge at which the best rate lies; None where it lies within."""
    low, high = space.rate
    place = math.log(rate / low) / math.log(high / low)
    if place < _EDGE:
        return replace(space, rate=(low / _DECADE, low))
    if place > 1 - _EDGE:
        return replace(space, rate=(high, high * _DECADE))
    return None


def trial(name: str) -> Candidate:
    """The candidate that is fitted for a trial."""
    return _renamed(name, {"bare_name": name.replace("keras:", TRIAL, 1)})


def tuned(word: str, best: str, count: int, seed: int) -> Candidate:
    """What "tuned:NAME" is on a problem, by the name of its best trial.

    Its origin is the search's, so that it is one optimizer on all problems.
    """
    name, space = space_of(word)
    about = {"trials": count, "seed": seed, "growths": GROWTHS, **asdict(space)}
    origin = fingerprint((), {f"{TUNED}{name}": about})
    return _renamed(best, {"bare_name": f"{TUNED}{name}", "bare_origin": origin})


def _renamed(word: str, names: dict[str, Any]) -> Candidate:
    (candidate,) = get_candidates(word)
    return replace(candidate, **names, described=(word, (None, None, None), names))


def best_of_search(
    word: str,
    task: Task,
    plan: Plan,
    directory: ResultsDirectory,
    count: int,
    run: Callable[[list, Plan], None],
) -> Candidate:
    """What "tuned:NAME" is on a task; trials that are not there yet are fitted first.

    Args:
        word: "tuned:NAME".
        task: The task.
        plan: Of the evaluation, whose seeds are not the trials'.
        directory: Where trials are.
        count: Trials before the range grows.
        run: Runs evaluations.

    Raises:
        UserError: If all trials diverged.
    """
    (name, space), first = space_of(word), plan.seed
    plan = Plan(1, plan.epochs, first + SEED)
    trials = [trial(each) for each in names(name, space, count, first)]
    for growth in range(GROWTHS + 1):
        print(f"Trials of {word} on {task.name}: {len(trials)}", flush=True)
        run(missing([task], trials, plan, directory), plan)
        best = best_trial(present([task], trials, plan, directory))
        if not best:
            raise UserError(f"All {len(trials)} trials of {word} on {task.name} diverged")
        grown = better_space(space, rate_of(best))
        if growth == GROWTHS or grown is None:
            break
        space = grown
        more = names(name, space, max(count // 2, 1), first + growth + 1)
        trials += [trial(each) for each in more]
    print(f"{word} of {task.name} is {best}", flush=True)
    return tuned(word, best, count, first)


def rate_of(name: str) -> float:
    """The rate in a trial's name."""
    return float(name.split("@")[1].split("+")[0])


def best_trial(results: Sequence[Result]) -> str:
    """The baseline that did best, by its last validation loss; "" if all diverged."""
    last = {r.optimizer: r for r in sorted(results, key=lambda r: r.epoch)}
    losses = {
        name: inf if r.diverged_at >= 0 or r.validation_loss != r.validation_loss
        else r.validation_loss
        for name, r in last.items()
    }  # fmt: skip
    best = min(losses, key=losses.__getitem__, default="")
    return best.replace(TRIAL, "keras:", 1) if losses.get(best, inf) < inf else ""
