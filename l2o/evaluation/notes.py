"""What is said before an evaluation: what is compared, and what should be known of it."""

from __future__ import annotations

from collections.abc import Sequence

from l2o.evaluation.baselines import Candidate
from l2o.evaluation.made import MADE
from l2o.evaluation.protocol import Plan
from l2o.evaluation.results import data_in_words
from l2o.evaluation.store import ResultsDirectory
from l2o.policies.checkpoint import doubts
from l2o.rules import WarmUp
from l2o.rules.decayed import WEIGHT_DECAY_LIMIT
from l2o.tasks.task import Task

_ADDED = ("averaging", "weight_decay")  # what a policy can bring and an argument can set


def announce(
    plan: Plan,
    tasks: Sequence[Task],
    candidates: Sequence[Candidate],
    searched: Sequence[str],
    given: Sequence[float | None],
    directory: ResultsDirectory,
) -> None:
    """Says what is compared, and what should be known of it.

    Args:
        plan: How often and how long.
        tasks: The problems.
        candidates: The optimizers.
        searched: Those that are tuned first, by name.
        given: Averaging and weight decay of all; None for their own.
        directory: Of the results.
    """
    epochs = dict.fromkeys(str(plan.epochs_of(task)) for task in tasks)
    print(f"Repeats: {plan.repeats}, epochs: {', '.join(epochs)}")
    print(f"Optimizers: {', '.join([*_named(candidates), *searched])}", flush=True)
    notes = []
    if directory.results and not (directory.path / MADE).exists():
        notes.append(
            f"the results in {directory.path} do not say of what release and data they are; "
            "they are taken for this one's"
        )
    notes += [
        f"there are also results of another {c.name}, from before it changed; they stay, and "
        "reports tell the two apart"
        for c in candidates
        if _replaces(c, directory)
    ]
    notes += [f"{c.name} was trained {doubt}" for c in candidates for doubt in doubts(c.card)]
    decay = given[1]
    for c in candidates:
        for what, value in zip(_ADDED, given, strict=True):
            if (own := getattr(c, what)) and value is None:
                flag = f"--{what.replace('_', '-')}"
                words = what.replace("_", " ")
                notes.append(
                    f"{c.bare_name} brings {words} of {own:g}; {flag} gives all the same, 0 none"
                )
    if (decay or 0) > WEIGHT_DECAY_LIMIT:
        notes.append(
            f"weight decay of {decay:g} a step is a lot: Keras' optimizers multiply theirs by the "
            "rate, here that is 1"
        )
    for note in dict.fromkeys([*notes, *_of_warmup(tasks, candidates, plan)]):
        print(f"Note: {note}")


def _named(candidates: Sequence[Candidate]) -> list[str]:
    """The optimizers, and which replicates of each stand together, but for the first alone."""
    numbers: dict[str, list[int]] = {}
    for candidate in candidates:
        numbers.setdefault(candidate.name, []).append(candidate.replicate)
    return [
        name if found == [1] else
        f"{name} (replicate{'s' * (len(found) > 1)} {', '.join(map(str, found))})"
        for name, found in numbers.items()
    ]  # fmt: skip


def _replaces(candidate: Candidate, directory: ResultsDirectory) -> bool:
    """Whether there are results of another optimizer by that name and number."""
    return any(
        (r.optimizer, r.replicate) == (candidate.name, candidate.replicate)
        and r.origin != candidate.origin
        for r in directory.results
    )


def _of_warmup(tasks: Sequence[Task], candidates: Sequence[Candidate], plan: Plan) -> list[str]:
    """What to say of warm-ups that differ, and of tasks whose steps are all or mostly warm-up."""
    warmup = min(c.warmup for c in candidates)
    names: dict[int, dict[str, None]] = {}
    for candidate in sorted(candidates, key=lambda c: (c.warmup == WarmUp.steps, c.warmup)):
        names.setdefault(candidate.warmup, {})[candidate.name] = None
    if len(names.get(WarmUp.steps, ())) > 1:
        names[WarmUp.steps] = {"the others": None}
    notes = []
    if len(names) > 1:
        each = ", ".join(f"{steps} for {' and '.join(who)}" for steps, who in names.items())
        notes.append(f"steps of warm-up differ: {each}. In a short fit fewer are an advantage")
    for task in tasks:
        number = plan.epochs_of(task) * task.steps_per_epoch
        data = data_in_words(task.dataset.name, task.dataset.in_place_of)
        where = f"steps of {task.name} on {data} are"
        wholly = dict.fromkeys(c.name for c in candidates if number <= c.warmup)
        if wholly and number > warmup:
            notes.append(f"the {number} {where} all warm-up, steps of SGD, for "
                         f"{' and '.join(wholly)}; give more --epochs")  # fmt: skip
        elif number <= warmup:
            notes.append(f"the {number} {where} all warm-up, {warmup} steps of SGD: optimizers "
                         "cannot differ; give more --epochs")  # fmt: skip
        elif number < 2 * warmup:
            notes.append(f"{warmup} of the {number} {where} warm-up, SGD for every optimizer; give "
                         "more --epochs")  # fmt: skip
    return notes
