"""Takes a finished run into the wheel: its policy, with a card that says what it is worth.

    python -m l2o.commands.ship runs/choice-large choice-large/1 --results results/train \\
        --commit 1a2b3c4 --command "python train.py --strategy choice --pool large"

The results are of `evaluate.py` with the run's policy. How it did on the run's own problem goes
into the card; a recipe's name alone stands for its replicate that did best on validation.
"""

from __future__ import annotations

import argparse
import csv
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean

from l2o.evaluation.baselines import get_candidates
from l2o.evaluation.results import distinct, read_results
from l2o.policies.checkpoint import load_policy
from l2o.policies.shipped import DIRECTORY
from l2o.reports.comparison import evaluations
from l2o.rules import averaged, decayed

USE = "training Keras models like those of the paper's Table 1: small image classifiers"
LIMITS = (
    "meta-trained on one convolutional network on MNIST; a step costs many times Adam's; elsewhere "
    "compare it with a tuned Adam first"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m l2o.commands.ship", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="recipe and replicate, as in choice-large/1")
    parser.add_argument("--results", type=Path, nargs="+", required=True)
    parser.add_argument("--commit", required=True, help="of the code that trained it")
    parser.add_argument("--command", required=True, help="that trained it")
    parser.add_argument("--replace", action="store_true", help="the policy shipped by that name")
    parser.add_argument("--averaging", type=float, default=0.0, metavar="S", help="that goes "
                        "with it, and that the results were made with; default 0")  # fmt: skip
    parser.add_argument("--weight-decay", type=float, default=0.0, metavar="W", help="that goes "
                        "with it, and that the results were made with; default 0")  # fmt: skip
    options = parser.parse_args()
    if not re.fullmatch(r"[a-z0-9.-]+/[1-9][0-9]*", options.name):
        parser.error(f"a name is recipe/replicate. Received: {options.name}")
    path = DIRECTORY / options.name
    if path.exists() and not options.replace:
        parser.error(f"{options.name} is shipped already; --replace takes its place")
    try:
        policy = load_policy(options.run / "policy")
        rule = decayed(averaged(policy.rule, options.averaging), options.weight_decay)
        found = evaluation(options, policy.card["problem"])
    except ValueError as error:  # what cannot be read, too
        parser.error(str(error))
    with (options.run / "periods.csv").open() as file:
        seconds = float(list(csv.DictReader(file))[-1]["seconds"])
    card = policy.card | {
        "command": options.command,
        "commit": options.commit,
        "hours": round(seconds / 3600, 2),
        "evaluation": found,
        "licence": "MIT",
        "use": USE,
        "limits": LIMITS,
    }
    replace(policy, rule=rule, card=card).save(path)
    print(f"{path}: {card['evaluation']}")


def evaluation(options: argparse.Namespace, problem: str) -> dict:
    """Means over repeats of what the run's policy reached on the problem, at the chosen epoch."""
    (candidate,) = get_candidates(str(options.run))
    candidate = candidate.using(options.averaging, options.weight_decay)
    found = [
        e
        for e in evaluations(distinct(read_results(*options.results)))
        if e.key.origin == candidate.origin and e.key.problem == problem and e.chosen
    ]
    if len({e.case for e in found}) != 1:
        raise ValueError(
            f"{', '.join(map(str, options.results))} must have evaluations of {candidate.name} on "
            f"{problem}, all alike"
        )
    case = found[0].case
    return {
        "problem": case.problem,
        "data": case.used,
        "epochs": case.epochs,
        "averaging": options.averaging,
        "weight_decay": options.weight_decay,
        "repeats": len(found),
        "seeds": sorted(e.key.seed for e in found),
        "log_validation_loss": mean(e.best for e in found),
        "log_test_loss": mean(e.test for e in found),
        "test_accuracy": mean(e.chosen.test_accuracy for e in found if e.chosen),
    }


if __name__ == "__main__":
    main()
