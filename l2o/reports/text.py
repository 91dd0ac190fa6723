"""What evaluations came to in plain text: a table, what its reader must know, numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, isinf, isnan
from textwrap import wrap

from l2o.evaluation.results import Result
from l2o.reports.comparison import Case, Summary, no_oracle, oracle, oracle_name, summarize
from l2o.reports.stability import Difference, Stability
from l2o.reports.targets import NEEDS, REFERENCE, races, shares

_MEASURED = 5.0  # seconds; what is shorter varies by itself


def summary_table(results: Iterable[Result]) -> str:
    """The results as plain text of at most 80 columns: a block a problem, a line an optimizer.

    Seconds are of one fit, by the clock and the processor. Where training is private, ε stands in
    place of the training loss.
    """
    blocks = []
    for case, summaries in summarize(results).items():
        best, best_name = oracle(summaries), oracle_name(summaries)
        private = any(isfinite(s.epsilon) for s in summaries)
        head = "optimizer", "n", "log val. loss [95%]", "ε" if private else "log train"
        lines = [case.title[:80], _line(*head, "test %", "wall s", "CPU s")]
        for s in summaries:
            name = s.label + (f" ({best_name})" if s is best else "")
            spent = _number(s.epsilon, 3) if private else _number(s.final_train, 2)
            loss, accuracy = _interval(s.performance, 2), _number(100 * s.test_accuracy, 2)
            members, times = str(len(s.evaluations)), (_seconds(s.seconds), _seconds(s.cpu_seconds))
            lines.append(_line(name, members, loss, spent, accuracy, *times))
        for note in notes(summaries):
            lines += wrap(note, 78, initial_indent="  ", subsequent_indent="    ")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _line(
    name: str, count: str, loss: str, spent: str, accuracy: str, wall: str, processor: str
) -> str:
    if len(name) > 20:  # on a line of its own
        name = f"{name[:78]}\n{'':22}"
    return f"  {name:<20}{count:>3} {loss:<24}{spent:>9} {accuracy:>6} {wall:>6} {processor:>6}"


def _seconds(value: float) -> str:
    """Seconds in six places, so far as they go."""
    return _number(value, 1 if value < 1000 else 0)


def shares_table(cases: Mapping[Case, Sequence[Summary]]) -> str:
    """How soon optimizers are where tuned AdamW ends, as plain text; why not, where nobody is."""
    head, found = f"Time to the last loss of {REFERENCE}", races(cases)
    if not found:
        return f"{head}: {NEEDS}\n"
    lines = [f"{head}, as a share of its steps", _share("optimizer", "reached", "mean of shares")]
    for s in shares(found):
        mean = "never" if isinf(s.mean) else f"{s.mean:.3f}"
        lines.append(_share(s.label, f"{s.reached} of {len(s.by_case)}", mean))
    note = "The interquartile mean over settings (problems and lengths), never being infinite"
    if without := len(cases) - len(found):
        note += f". Left out, without such a loss: {without} of {len(cases)}"
    return (
        "\n".join([*lines, *wrap(note, 78, initial_indent="  ", subsequent_indent="    ")]) + "\n"
    )


def _share(name: str, reached: str, mean: str) -> str:
    return f"  {name[:46]:<46} {reached:>12} {mean:>16}"


def notes(summaries: Sequence[Summary]) -> list[str]:
    """What a reader of these summaries must know, a sentence each."""
    lines = [no_oracle(summaries)] if no_oracle(summaries) else []
    for s in summaries:
        if s.diverged:
            steps = ", ".join(str(e.diverged_at) for e in s.evaluations if e.diverged_at >= 0)
            lines.append(
                f"{s.label}: {s.diverged} of {len(s.evaluations)} DIVERGED (at step {steps}); "
                "in no mean"
            )
        negative = sum(e.chosen is not None and e.chosen.validation_loss < 0 for e in s.evaluations)
        if negative:
            lines.append(
                f"{s.label}: the loss of {negative} of {len(s.evaluations)} fell below 0, where it "
                "has no logarithm; in no mean of those"
            )
        counts = Counter(e.key.replicate for e in s.evaluations)
        if len(set(counts.values())) > 1:
            lines.append(
                f"{s.label}: replicates have {min(counts.values())} to {max(counts.values())} "
                "evaluations"
            )
    uneven = [s.label for s in summaries if _pace_varies(s)]
    if uneven:
        lines.append(
            "Seconds are of machines or loads that differ and do not compare: those a step of "
            f"{', '.join(uneven)} differ by half and more between evaluations"
        )
    several = [s.label for s in summaries if s.performance.replicates > 1]
    if several:
        lines.append(f"Intervals are over replicates and seeds for {', '.join(several)}")
    privacy = {(e.rows[-1].delta, e.rows[-1].privacy) for s in summaries for e in s.evaluations
               if isfinite(e.rows[-1].epsilon)}  # fmt: skip
    lines += [f"ε at δ = {delta:g}: {how}" for delta, how in sorted(privacy)]
    return lines


def _pace_varies(s: Summary) -> bool:
    """Whether an optimizer's steps took half as long again in one evaluation as in another."""
    ends = [e.rows[-1] for e in s.evaluations if e.rows[-1].seconds > _MEASURED]
    paces = [end.seconds / end.steps for end in ends]
    return bool(paces) and max(paces) > 1.5 * min(paces)


def _interval(s: Stability | Difference, digits: int = 3) -> str:
    """A mean and its interval: "-2.950 [-3.010, -2.890]"; "none" where there is no mean."""
    if isnan(s.mean):
        return "none"
    if isnan(s.low):
        return f"{_number(s.mean, digits)} [one value]"
    return f"{_number(s.mean, digits)} [{_number(s.low, digits)}, {_number(s.high, digits)}]"


def _number(value: float, digits: int) -> str:
    """A number, or a dash where there is none."""
    return f"{value:.{digits}f}" if isfinite(value) else "-"
