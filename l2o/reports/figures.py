"""The paper's figures, as far as results allow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from math import isfinite, isnan
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from l2o.reports import plots, style
from l2o.reports.comparison import Case, Evaluation, Summary, log_loss, oracle
from l2o.reports.targets import times

SCHEMES = ("choice", "mean", "minmax")
BASELINES = ("rnnprop", "stronger", "original", "scale", "none")
LARGER = ("cifar10_resnet52", "cifar100_resnet52")
_PERFORMANCE = "best log validation loss (loss in nats)"
_BY_EPOCH = "log validation loss (loss in nats)"
_DOTS = (
    "A marker is an evaluation, the line below its 95% interval with the mean; the dashed line is "
    "the mean of the oracle, the tuned teacher that is best on validation. The number of "
    "evaluations follows each name. Further left is better. Intervals may be longer than the panel "
    "is wide."
)
_CURVES = (
    "Mean over evaluations; the band is one standard deviation. Dashed black is the oracle, "
    "the tuned teacher that is best on validation. Lower is better."
)
_TIMES = (
    "A marker is an evaluation: hollow when it reached 95% of the oracle's fall from epoch 0, "
    "filled when it reached the oracle's mean best; larger where several coincide. At the right, "
    "how many never did. Measured once an epoch."
)


@dataclass(frozen=True)
class Drawing:
    """A figure, or why there is none.

    Attributes:
        file: Its name without ending.
        title, caption: What it shows.
        draw: Makes it; None where results do not allow it.
        lacking: What the results lack.
    """

    file: str
    title: str
    caption: str
    draw: Callable[[], Figure] | None
    lacking: str = ""


def drawings(
    cases: Mapping[Case, Sequence[Summary]],
    cards: Mapping[str, Mapping[str, Any]] = {},  # noqa: B006  (read only)
    samples: Mapping[str, np.ndarray] = {},  # noqa: B006
) -> list[Drawing]:
    """The figures of Huang et al. (2022) in their order, and what else the results show.

    Args:
        cases: As from `summarize`.
        cards: Policies' cards by their origin.
        samples: Images by dataset, uint8 [n, height, width, channels].
    """
    look = style.look(cases)
    long = {case: found for case, found in cases.items() if case.epochs > 1}
    usual = {case: found for case, found in long.items() if case.problem not in LARGER}
    larger = {case: found for case, found in long.items() if case.problem in LARGER}
    schemes = _only(cases, SCHEMES)
    baselines = _only(cases, BASELINES)
    both = _only({case: cases[case] for case in baselines}, BASELINES + SCHEMES)
    steady = _where(cases, lambda s: s.optimization.mean)
    evaluation = _where(cases, lambda s: s.performance.evaluation)
    meta = _where(cases, lambda s: s.performance.meta)
    rated = _where(long, lambda s: s.validation_accuracy)
    perturbed = _perturbed(cases, cards)
    reached = {case: found for case, found in ((c, times(s)) for c, s in cases.items()) if found}

    def dots(of):
        return lambda: plots.dots(of, look, lambda e: e.best, lambda s: s.performance, _PERFORMANCE)

    def curves(of, value, label, cropped=True):
        return lambda: plots.curves(of, look, value, label, cropped)

    def scatter(of, across, name):
        return lambda: plots.scatter(of, look, across, lambda s: s.performance.mean,
                                     (name, "best log val. loss (loss in nats)"))  # fmt: skip

    a_scheme = f"a policy named after its scheme ({', '.join(SCHEMES)})"
    found = [
        ("every-optimizer", "Every optimizer", _DOTS, cases, dots(cases), "an evaluation"),
        ("figure-1", "Figure 1: amalgamation schemes", _DOTS, schemes, dots(schemes), a_scheme),
        ("figure-2", "Figure 2: learned baselines", _DOTS, both, dots(both),
         f"a learned baseline ({', '.join(BASELINES[:-1])})"),
        ("figure-3", "Figure 3: learned optimizers and the oracle, by epoch",
         f"{_CURVES} Cropped to the oracle's range.", usual,
         curves(usual, _log_validation, _BY_EPOCH), "an evaluation of more than one epoch"),
        ("figure-4", "Figure 4: evaluation stability and performance",
         "Further left is steadier from evaluation to evaluation, further down is better.",
         evaluation, scatter(evaluation, lambda s: s.performance.evaluation,
                             "evaluation stability (standard deviation)"),
         "two evaluations of one replicate"),
        ("figure-4-meta", "Figure 4: meta-stability and performance",
         "Further left is steadier from replicate to replicate, further down is better.",
         meta, scatter(meta, lambda s: s.performance.meta, "meta-stability (standard deviation)"),
         "several replicates of a policy, each evaluated more than once"),
        ("figure-5", "Figure 5: optimization stability",
         "Standard deviation of the log validation loss about its smoothed curve. " + _DOTS,
         steady, lambda: plots.dots(steady, look, lambda e: e.jitter, lambda s: s.optimization,
                                    "optimization stability (standard deviation)"),
         "an evaluation of more than one epoch"),
        ("figure-6", "Figure 6: meta-stability by perturbation's magnitude",
         "One line a way of training, but for the magnitude; lower is steadier.", perturbed,
         lambda: _by_magnitude(perturbed),
         "replicates of policies trained under perturbation, with their cards"),
        ("figure-7", "Figure 7: samples of the datasets", "The first test images of each.", samples,
         lambda: _samples(samples), "the datasets' images at hand"),
        ("figure-8", "Figure 8: larger evaluations",
         f"{_CURVES} Cropped to the oracle's range.", larger,
         curves(larger, _log_validation, _BY_EPOCH),
         f"an evaluation of {' or '.join(LARGER)}"),
        ("figure-e3-uncropped", "Appendix E.3: by epoch, uncropped", _CURVES, cases,
         curves(cases, _log_validation, _BY_EPOCH, cropped=False), "an evaluation"),
        ("figure-e3-accuracy", "Appendix E.3: validation accuracy by epoch",
         _CURVES.replace("Lower", "Higher") + " Cropped to the oracle's range.", rated,
         curves(rated, _accuracy, "validation accuracy (%)"),
         "an evaluation of more than one epoch on labels that are classes"),
        ("time-to-target-steps", "Time to target, in steps", _TIMES, reached,
         lambda: plots.durations(reached, look, "steps"), "an oracle: a tuned teacher"),
        ("time-to-target-seconds", "Time to target, in seconds", _TIMES, reached,
         lambda: plots.durations(reached, look, "seconds"), "an oracle: a tuned teacher"),
    ]  # fmt: skip
    return [
        Drawing(file, title, caption, draw if data else None, "" if data else lacking)
        for file, title, caption, data, draw, lacking in found
    ]


def is_a(summary: Summary, names: Sequence[str]) -> bool:
    """Whether an optimizer's name is, or starts with, one of the names: "choice-large"."""
    name = summary.evaluations[0].key.optimizer
    return re.split(r"[-+/]", name)[0] in names and not summary.teacher


def _only(cases, names) -> dict[Case, list[Summary]]:
    """Of each case that has optimizers of these names, those and the oracle."""
    found = {}
    for case, summaries in cases.items():
        best = oracle(summaries)
        if any(is_a(s, names) for s in summaries):
            found[case] = [s for s in summaries if is_a(s, names) or s is best]
    return found


def _where(cases, value: Callable[[Summary], float]) -> dict[Case, list[Summary]]:
    """Of each case, the optimizers of which the value is known."""
    known = {case: [s for s in found if not isnan(value(s))] for case, found in cases.items()}
    return {case: found for case, found in known.items() if found}


def perturbation(
    summary: Summary, cards: Mapping[str, Mapping[str, Any]]
) -> tuple[str, float] | None:
    """Kind and magnitude of the perturbation a policy was trained under, by its card.

    A card has them under "perturbation": {"kind": "gaussian", "magnitude": 1e-3}; `read_cards`
    puts those of other cards there.
    """
    found = cards.get(summary.evaluations[0].key.origin, {}).get("perturbation")
    return (str(found["kind"]), float(found["magnitude"])) if isinstance(found, Mapping) else None


def _perturbed(cases, cards) -> dict[Case, dict[tuple[str, ...], list[tuple[float, Summary]]]]:
    """Of each case, lines of magnitudes and policies by the words that tell them apart."""
    found: dict[Case, dict[tuple[str, ...], list[tuple[float, Summary]]]] = {}
    for case, summaries in cases.items():
        for s in summaries:
            of = perturbation(s, cards)
            if of and isfinite(s.performance.meta):
                key = s.evaluations[0].key
                words = _but_for_magnitude(key.optimizer, cards[key.origin])
                found.setdefault(case, {}).setdefault(words, []).append((of[1], s))
    return found


def _but_for_magnitude(name: str, card: Mapping[str, Any]) -> tuple[str, ...]:
    """How a perturbed policy was trained and is used, in words; the first is the kind."""
    noise, rule = card["perturbation"], str(card.get("policy", ""))  # of most shipped ones
    with suppress(LookupError, TypeError):  # of a card that is not of our own making
        rule = str(card["phases"][-1]["rule"]["rule"])
    return (
        str(noise["kind"]),
        "absolute" if noise.get("absolute") else "",
        f"attack steps {noise.get('attack_steps', 1)}",
        *(str(card.get(what, "")) for what in ("strategy", "pool", "problem", "preset", "phase")),
        rule,
        "".join(name.partition("+")[1:]),  # averaging, weight decay, EMA
    )


def _by_magnitude(perturbed) -> Figure:
    figure, grid = style.panels(perturbed, 2.75)
    for axes, lines in zip(grid, perturbed.values(), strict=True):
        differing = [i for i, words in enumerate(zip(*lines, strict=True)) if len({*words}) > 1]
        looks = zip(sorted(lines.items()), cycle(style.COLOURS), cycle("osD^vPX"), strict=False)
        for (words, points), colour, marker in looks:
            points = sorted(points, key=lambda point: point[0])
            name = ", ".join(words[i] for i in sorted({0, *differing}) if words[i])
            n = "/".join(map(str, sorted({s.performance.replicates for _, s in points})))
            axes.plot([m for m, _ in points], [s.performance.meta for _, s in points],
                      color=colour, marker=marker,
                      label=f"{name} (n = {n} replicates each)")  # fmt: skip
        axes.set_xscale("symlog", linthresh=1e-5)
        magnitudes = sorted({m for points in lines.values() for m, _ in points})
        axes.set_xticks(magnitudes, [f"{m:g}" for m in magnitudes])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("magnitude of the perturbation")
        axes.set_ylabel("meta-stability (standard deviation)")
        axes.legend()
    return figure


def _samples(samples: Mapping[str, np.ndarray], count: int = 10) -> Figure:
    figure = Figure((6.0, 0.72 * len(samples)), layout="constrained")
    grid = figure.subplots(len(samples), count, squeeze=False)
    for row, (name, images) in zip(grid, samples.items(), strict=True):
        for axes in row:
            axes.axis("off")
        for axes, image in zip(row, images, strict=False):
            axes.imshow(image if image.shape[-1] > 1 else image[..., 0], cmap="gray")
        row[0].text(-0.2, 0.5, name, ha="right", va="center", transform=row[0].transAxes)
    return figure


def _log_validation(epoch: int, evaluation: Evaluation) -> float:
    """Log validation loss after an epoch."""
    return log_loss(evaluation.rows[epoch].validation_loss)


def _accuracy(epoch: int, evaluation: Evaluation) -> float:
    """Validation accuracy after an epoch, in percent."""
    return 100 * evaluation.rows[epoch].validation_accuracy
