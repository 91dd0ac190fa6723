"""Summaries, tables, figures and the page, from made-up results with known answers."""

import csv
import re
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from math import inf, isnan, log, sqrt
from pathlib import Path

import numpy as np
import pytest
from made_results import made_evaluation

from l2o.evaluation.results import read_results
from l2o.evaluation.store import ResultsDirectory, read_cards
from l2o.reports import style
from l2o.reports.comparison import difference, summarize, winner
from l2o.reports.contents import write_report
from l2o.reports.figures import drawings
from l2o.reports.text import summary_table

_DATA = Path(__file__).parents[1] / "docs" / "results" / "data"


def rows(*evaluations):
    return [row for evaluation in evaluations for row in evaluation]


def small():
    """All teachers, a policy of two replicates, a baseline; two problems, one of them private."""
    found = []
    for problem, epsilon in (("mnist_cnn", inf), ("mnist_dp", 0.2)):
        for repeat in (1, 2):
            shift = 0.02 * repeat
            same = {"problem": problem, "repeat": repeat, "epsilon": epsilon}
            found += made_evaluation("adam", [2.3, 0.3 + shift, 0.2 + shift, 0.25], **same)
            for teacher in ("rmsprop", "sgd", "momentum", "addsign", "powersign"):
                found += made_evaluation(teacher, [2.3, 0.9 + shift, 0.6, 0.5 - shift], **same)
            found += made_evaluation("rnnprop", [2.3, 0.4, 0.3 + shift, 0.3], **same)
            for replicate in (1, 2):
                losses = [2.3, 0.3, 0.2 + shift, 0.05 + 0.05 * replicate + 0.1 * shift]
                found += made_evaluation("choice-large", losses, replicate=replicate, **same)
    return found


# --- summaries --------------------------------------------------------------------------------


def test_outcomes_are_taken_at_the_epoch_chosen_on_validation():
    losses = [3.0, 0.5, 0.2, 0.4]
    ((summary,),) = summarize(made_evaluation("adam", losses)).values()
    assert summary.performance.mean == pytest.approx(log(0.2))
    assert summary.final_train == pytest.approx(log(0.9 * 0.4))
    assert summary.validation_accuracy == pytest.approx(1 / 1.2)
    assert summary.test_accuracy == pytest.approx(1 / 1.2 - 0.01)
    assert summary.seconds == 6.0
    assert summary.test == summary.best_test == pytest.approx(log(1.1 * 0.2))


def test_the_best_test_loss_is_of_the_epoch_that_is_best_on_test():
    made, losses = made_evaluation("adam", [3.0, 0.5, 0.2, 0.4, 0.6]), (0.01, 0.3, 0.25, 0.1, 0.2)
    made = [replace(row, test_loss=loss) for row, loss in zip(made, losses, strict=True)]
    ((summary,),) = summarize(made).values()
    assert summary.test == pytest.approx(log(0.25))
    assert summary.best_test == pytest.approx(log(0.1))


def test_epoch_0_is_not_chosen():
    ((summary,),) = summarize(made_evaluation("adam", [0.1, 0.5, 0.4])).values()
    assert summary.performance.mean == pytest.approx(log(0.4))


def test_diverged_evaluations_are_counted_and_in_no_mean():
    whole = made_evaluation("adam", [3.0, 0.5, 0.2])
    broken = made_evaluation("adam", [3.0, 0.01, inf], repeat=2)
    ((with_broken,),) = summarize(rows(whole, broken)).values()
    ((alone,),) = summarize(whole).values()
    assert (with_broken.diverged, len(with_broken.evaluations)) == (1, 2)
    assert with_broken.performance.excluded == 1
    for name in (
        "test",
        "best_test",
        "final_train",
        "validation_accuracy",
        "test_accuracy",
        "seconds",
    ):
        assert getattr(with_broken, name) == getattr(alone, name)
    assert with_broken.performance.mean == alone.performance.mean
    assert with_broken.optimization.mean == alone.optimization.mean


def test_all_diverged_comes_last_without_numbers():
    found = rows(made_evaluation("adam", [3.0, 0.01, inf]), made_evaluation("sgd", [3.0, 2.0, 1.0]))
    (summaries,) = summarize(found).values()
    assert [s.label for s in summaries] == ["sgd", "adam"]
    assert isnan(summaries[1].performance.mean) and isnan(summaries[1].seconds)


def test_replicates_stand_together_and_give_meta_stability():
    found = summarize(small())
    by = {s.label: s for s in next(iter(found.values()))}
    assert by["choice-large"].performance.replicates == 2
    assert by["choice-large"].performance.meta > 0
    assert isnan(by["adam"].performance.meta)


def test_means_are_of_the_replicates_however_often_each_was_run():
    found = rows(
        *(made_evaluation("policy", [3.0, 0.1], repeat=k) for k in (1, 2, 3)),
        made_evaluation("policy", [3.0, 0.2], replicate=2, seconds=4.0),
    )
    ((policy,),) = summarize(found).values()
    assert policy.test == pytest.approx((log(0.11) + log(0.22)) / 2)
    assert policy.seconds == 3.0


@pytest.mark.parametrize("slower", [1.4, 1.6])
def test_seconds_that_do_not_compare_are_said(slower):
    found = rows(
        made_evaluation("adam", [3.0, 0.1], repeat=1, seconds=20.0),
        made_evaluation("adam", [3.0, 0.1], repeat=2, seconds=20.0 * slower),
        made_evaluation("sgd", [3.0, 0.1], seconds=0.1),
        made_evaluation("sgd", [3.0, 0.1], repeat=2, seconds=1.0),
    )
    said = " ".join(summary_table(found).split())
    assert ("those a step of adam differ by half and more" in said) == (slower == 1.6)
    assert "step of sgd" not in said


def test_what_seeds_have_in_common_is_not_taken_for_noise():
    losses = [0.1 * 2**i * 4**j for i in range(2) for j in range(3)]  # 2 a replicate, 4 a seed
    found = rows(
        *(
            made_evaluation("policy", [3.0, loss], replicate=k // 3 + 1, repeat=k % 3 + 1)
            for k, loss in enumerate(losses)
        )
    )
    other = [replace(r, repeat=4 - r.repeat) if r.replicate == 2 else r for r in found]
    for same in (found, other):  # a seed is the same fit whichever repeat it is
        ((policy,),) = summarize(same).values()
        assert policy.performance.meta == pytest.approx(log(2) / sqrt(2))
        assert policy.performance.evaluation == pytest.approx(log(4))


def test_a_name_that_meant_two_things_is_told_apart_by_origin():
    found = rows(
        made_evaluation("policy", [3.0, 1.0], origin="aaaaaaaa"),
        made_evaluation("policy", [3.0, 2.0], origin="bbbbbbbb"),
    )
    (summaries,) = summarize(found).values()
    assert [s.label for s in summaries] == ["policy [aaaaaa]", "policy [bbbbbb]"]


@pytest.mark.parametrize(
    "other", [{"problem": "b"}, {"data": "b"}, {"in_place_of": "a"}, {"epochs": 2}]
)
def test_what_cannot_be_compared_is_kept_apart(other):
    first = made_evaluation("adam", [3.0, 1.0])
    second = made_evaluation("adam", [3.0, 1.0, 0.5] if "epochs" in other else [3.0, 1.0], **other)
    assert len(summarize(rows(first, second))) == 2


def test_cases_that_data_alone_tell_apart_have_titles_that_do():
    one, other = (made_evaluation("adam", [1, 0.5], data=data) for data in ("own a", "own b"))
    assert [case.title for case in summarize(one)] == ["mnist_cnn, 1 epoch"]
    assert {case.title for case in summarize(one + other)} == {
        "mnist_cnn, 1 epoch, own a", "mnist_cnn, 1 epoch, own b"
    }  # fmt: skip


def test_paired_difference_pairs_by_seed():
    found = rows(
        *(made_evaluation("adam", [3.0, loss], repeat=k) for k, loss in enumerate([1.0, 0.1], 1)),
        *(made_evaluation("nadam", [3.0, loss], repeat=k) for k, loss in enumerate([2.0, 0.2], 1)),
    )
    (summaries,) = summarize(found).values()
    by = {s.label: s for s in summaries}
    gap = difference(by["adam"], by["nadam"])
    assert gap.mean == pytest.approx(-log(2))
    swapped = [replace(r, repeat=3 - r.repeat) if r.optimizer == "nadam" else r for r in found]
    (summaries,) = summarize(swapped).values()
    by = {s.label: s for s in summaries}
    gap = difference(by["adam"], by["nadam"])  # whichever repeat a seed is
    assert (gap.low, gap.high) == pytest.approx((-log(2), -log(2)))
    assert gap.high - gap.low == pytest.approx(0, abs=1e-6)


# --- the plain table --------------------------------------------------------------------------


def test_one_fit_that_went_well_is_not_the_best_optimizer():
    lucky = made_evaluation("lucky", [2.3, 0.01, 0.01, 0.01])
    for found in summarize(small() + lucky).values():
        assert winner(found).label == "choice-large"
    (alone,) = summarize(lucky).values()
    assert winner(alone).label == "lucky"


def test_table_says_what_it_must():
    found = small() + made_evaluation("adam@0.5", [2.3, 3.0, inf], epochs=3)
    text = summary_table(found)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    adam = next(line for line in lines if line.startswith("  adam (oracle)"))
    mean = (log(0.22) + log(0.24)) / 2
    assert re.search(rf"\b2 {mean:.2f} \[", adam)
    assert lines[1].split()[-4:] == ["wall", "s", "CPU", "s"]
    assert adam.split()[-2:] == ["6.0", "9.0"]  # 3 epochs of 2 seconds, 1.5 of the processor
    assert "adam@0.5: 1 of 1 DIVERGED (at step 107)" in text
    assert "Intervals are over replicates and seeds for choice-large" in text
    plain, private = text.split("\n\n")
    assert "ε" not in plain
    assert "0.600" in private and "ε at δ = 1e-05: RDP, Poisson" in private


def test_table_keeps_its_width_and_names_substituted_data():
    found = rows(
        *(made_evaluation(f"a-very-long-name-of-a-policy-{k}", [3.0, 1e-9 + k, 1e5], replicate=j,
                          problem="mnist_deeper_strided", data="digits", in_place_of="mnist",
                          epsilon=0.1)
          for k in range(9) for j in (1, 2)),
    )  # fmt: skip
    text = summary_table(found)
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"  a-very-long-name-of-a-policy-{k}\n" in text for k in range(9))
    assert "ON DIGITS FOR MNIST" in text


def test_missing_cells_are_said():
    found = rows(*(made_evaluation("choice", [3.0, 1.0 + i + j], replicate=i, repeat=j)
                   for i, j in [(1, 1), (1, 2), (2, 1)]))  # fmt: skip
    assert "choice: replicates have 1 to 2 evaluations" in summary_table(found)


# --- the report -------------------------------------------------------------------------------


class Links(HTMLParser):
    """Everything a page refers to, and its text."""

    def __init__(self):
        super().__init__()
        self.found, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    return output, write_report(small(), output)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures cost time; tests of the text do without."""
    monkeypatch.setattr("l2o.reports.contents.png", lambda draw: b"")


def test_files_are_what_was_returned(written):
    output, paths = written
    assert {p for p in output.rglob("*") if p.is_file()} == set(paths)
    pictures = [p for p in paths if p.suffix == ".png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
    names = {p.stem for p in pictures}
    assert {"every-optimizer", "figure-1", "figure-2", "figure-3", "figure-4", "figure-4-meta",
            "figure-5", "figure-e3-uncropped", "figure-e3-accuracy", "time-to-target-steps",
            "time-to-target-seconds"} == names  # fmt: skip


def test_page_needs_nothing_else(written):
    output, paths = written
    page = (output / "report.html").read_text()
    links = Links()
    links.feed(page)
    inside = [link for link in links.found if link.startswith("data:image/png;base64,")]
    assert len(inside) == sum(p.suffix == ".png" for p in paths)
    assert all(link.startswith("#s") for link in links.found if link not in inside)
    assert "script" not in links.tags and "link" not in links.tags
    assert "url(" not in page and "@import" not in page


def test_markdown_refers_to_files_that_are_there(written):
    output, _ = written
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", (output / "report.md").read_text())
    assert len(pictures) == 11
    assert all((output / picture).is_file() for picture in pictures)


def test_csv_holds_the_numbers_in_full(written):
    output, _ = written
    with open(output / "tables" / "results.csv", newline="") as file:
        found = {(r["problem"], r["optimizer"]): r for r in csv.DictReader(file)}
    assert len(found) == 16
    adam = found["mnist_cnn", "adam (oracle)"]
    assert float(adam["log validation loss"]) == pytest.approx((log(0.22) + log(0.24)) / 2)
    assert adam["ε"] == "" and float(found["mnist_dp", "sgd"]["ε"]) == pytest.approx(0.6)


def test_columns_hold_what_their_heads_say(written):
    def read(name: str) -> dict[tuple[str, str], dict[str, str]]:
        with open(written[0] / "tables" / f"{name}.csv", newline="") as file:
            return {(r["problem"], r["optimizer"]): r for r in csv.DictReader(file)}

    against, stability, time = map(read, ("against_oracle", "stability", "time_to_target"))
    for case, summaries in summarize(small()).items():
        by = {s.label: s for s in summaries}
        ours, theirs = by["choice-large"], by["adam"]
        gap, found = difference(ours, theirs), against[case.problem, "choice-large"]
        columns = ("difference", "95% interval from", "95% interval to")
        assert [float(found[c]) for c in columns] == [gap.mean, gap.low, gap.high]
        assert gap.mean < 0  # choice-large has the lower loss
        found = stability[case.problem, "choice-large"]
        columns = ("meta-stability", "evaluation stability")
        expected = [ours.performance.meta, ours.performance.evaluation]
        assert [float(found[c]) for c in columns] == expected
        assert expected[0] != expected[1]
        found = time[case.problem, "adam"]  # 100 steps and 2 seconds an epoch
        name = "95% of the fall"
        assert [float(found[f"{name}: {unit}"]) for unit in ("steps", "seconds")] == [150, 3]
    with open(written[0] / "tables" / "overview.csv", newline="") as file:
        assert all(float(row["paired difference"]) < 0 for row in csv.DictReader(file))


def test_every_table_of_fits_has_their_seconds_by_clock_and_processor(tmp_path, undrawn):
    found = small() + rows(
        *(made_evaluation("tuned:AdamW", [2.3, 0.4, 0.3, 0.3], repeat=k, seconds=4.0)
          for k in (1, 2))
    )  # fmt: skip
    write_report(found, tmp_path)
    expected = {"seconds": 6, "CPU seconds": 9}  # 3 epochs of 2 seconds, 1.5 of the processor
    for name in ("results", "against_oracle", "stability", "overview", "versus"):
        with open(tmp_path / "tables" / f"{name}.csv", newline="") as file:
            line = next(r for r in csv.DictReader(file) if "choice-large" in r.values())
        assert {unit: float(line[unit]) for unit in expected} == expected, name
        if name == "versus":
            line = {unit: float(line[f"baseline's {unit}"]) for unit in expected}
            assert line == {"seconds": 12, "CPU seconds": 18}
    with open(tmp_path / "tables" / "time_to_target.csv", newline="") as file:
        line = next(csv.DictReader(file))
    for goal in ("best", "95% of the fall"):
        assert float(line[f"{goal}: CPU seconds"]) == 1.5 * float(line[f"{goal}: seconds"])


def test_what_results_do_not_contain_is_named(written):
    output, _ = written
    lacking = (output / "report.md").read_text().split("## What these results do not contain")[1]
    for name in ("Figure 6", "Figure 7", "Figure 8", "Table 4", "Table 6"):
        assert name in lacking
    for name in ("Figure 1:", "Figure 3:", "Figure 5:"):
        assert name not in lacking


@pytest.mark.parametrize("selection", ["", "--epochs 1"])
def test_a_selection_is_said(tmp_path, undrawn, selection):
    write_report(made_evaluation("adam", [2.0, 1.0]), tmp_path, selection=selection)
    for page in ("report.md", "report.html"):
        assert ("selection of the results there are: --epochs 1" in
                (tmp_path / page).read_text()) == bool(selection)  # fmt: skip


def test_a_single_evaluation_still_makes_a_report(tmp_path):
    write_report(made_evaluation("nadam", [2.0, 1.0]), tmp_path)
    text = (tmp_path / "report.md").read_text()
    lacking = text.split("## What these results do not contain")[1]
    for name in ("Figure 1", "Figure 2", "Figure 4", "Figure 5", "Time to target"):
        assert name in lacking
    assert "there is no oracle" in text


def test_divergence_and_substituted_data_are_said_first(tmp_path, undrawn):
    found = rows(
        made_evaluation("adam", [2.0, 1.0, inf], data="digits", in_place_of="mnist"),
        made_evaluation("sgd", [2.0, 1.0, 0.5], data="digits", in_place_of="mnist"),
        made_evaluation("sgd", [2.0, 1.0, 0.5], problem="mnist_mlp"),
        made_evaluation("mine", [2.0, 1.0, 0.5], problem="mnist_mlp", origin="m"),
    )
    card = {"preset": "smoke", "data": "digits, IN PLACE OF mnist (scikit-learn; 1,000 train)"}
    write_report(found, tmp_path, {"m": card})
    overview = (tmp_path / "report.md").read_text().split("\n## ")[1]
    assert "mine was trained by the smoke preset" in overview
    assert "mine was trained on digits, IN PLACE OF mnist." in overview
    assert "mnist_cnn ran on substituted data: digits for mnist" in overview
    assert "1 of 1 evaluations of adam diverged" in overview
    counts = [line.split(" | ") for line in overview.split("in each setting:")[1].split("\n")]
    by_name = {cells[0].strip("| "): [c.strip("| ") for c in cells[1:]] for cells in counts}
    assert len(by_name["optimizer"]) == 2 and "mnist_mlp, 2 epochs" in by_name["optimizer"]
    place = by_name["optimizer"].index("mnist_mlp, 2 epochs")
    assert [by_name[name][place] for name in ("adam", "sgd", "mine")] == ["–", "1", "1"]


def test_all_diverged_makes_a_report(tmp_path):
    write_report(made_evaluation("adam", [2.0, 1.0, inf]), tmp_path)
    assert "1 of 1 evaluations of adam diverged" in (tmp_path / "report.md").read_text()


def test_names_are_text_not_markup(tmp_path, undrawn):
    write_report(made_evaluation("<b>|x</b>", [2.0, 1.0]), tmp_path)
    links = Links()
    links.feed((tmp_path / "report.html").read_text())
    assert "b" not in links.tags and "<b>|x</b>" in links.text
    row = next(r for r in (tmp_path / "report.md").read_text().splitlines() if r"\|x" in r)
    assert row.startswith("| ")


def test_cards_and_images_add_their_tables_and_figures(tmp_path):
    found, cards = [], {}
    for magnitude in (1e-3, 1e-2):
        for replicate in (1, 2):
            origin = f"{magnitude}/{replicate}"
            cards[origin] = {"strategy": "choice", "pool": "large", "updates": 100 * replicate,
                             "seconds": 3600.0 * replicate,
                             "perturbation": {"kind": "input", "magnitude": magnitude}}  # fmt: skip
            for repeat in (1, 2):
                losses = [2.0, 0.1 * replicate + 0.03 * repeat]
                found += made_evaluation(f"choice-{magnitude}", losses, origin=origin,
                                         replicate=replicate, repeat=repeat)  # fmt: skip
    samples = {
        "mnist": np.zeros((3, 8, 8, 1), np.uint8),
        "cifar": np.zeros((12, 8, 8, 3), np.uint8),
    }
    paths = write_report(found, tmp_path, cards, samples)
    assert {"figure-6.png", "figure-7.png", "table-4.csv", "table-6.csv"} <= {p.name for p in paths}
    with open(tmp_path / "tables" / "table-4.csv", newline="") as file:
        cost = next(csv.DictReader(file))
    assert (float(cost["meta-updates"]), float(cost["hours"])) == (150, 1.5)


def test_names_and_images_of_any_kind_are_drawn(tmp_path):
    """Matplotlib takes what stands between dollar signs for a formula."""
    samples = {"a row": np.zeros((2, 1, 100, 1), np.uint8)}
    paths = write_report(small() + made_evaluation("a$x_$b", [2.3, 1.0]), tmp_path, {}, samples)
    assert "figure-7.png" in {path.name for path in paths}


def test_no_results_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        write_report([], tmp_path)
    assert not list(tmp_path.iterdir())


# --- figures ----------------------------------------------------------------------------------


def drawn(found, file):
    return next(d for d in drawings(summarize(found)) if d.file == file).draw()


def test_dots_name_optimizers_numbers_and_unit():
    figure = drawn(small() + made_evaluation("adam@1", [2.3, 3.0, 2.0, inf]), "every-optimizer")
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names[0] == "choice-large (4)" and "oracle: adam (2)" in names
    assert names[-1] == "adam@1 (1, 1 diverged)"
    assert "nats" in axes.get_xlabel()


def test_curves_show_means_of_logs():
    figure = drawn(small(), "figure-3")
    expected = [(log(0.32) + log(0.34)) / 2, (log(0.22) + log(0.24)) / 2, log(0.25)]
    lines = [line for line in figure.axes[0].lines if line.get_color() == "#000000"]
    assert np.allclose(lines[0].get_ydata(), expected)
    uncropped = drawn(small(), "figure-e3-uncropped").axes[0]
    assert all(len(line.get_xdata()) == 4 for line in uncropped.lines)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "choice-large (n = 4)" in legend and "oracle" in legend


def test_curves_outside_a_panel_are_named_and_have_no_band_in_it():
    found = [r for j in (1, 2) for name, loss in (("adam", 1.0), ("mine", 1.1), ("wild", 90.0))
             for r in made_evaluation(name, [2.3, loss, 0.9 * loss, 0.8 * loss + 0.01 * j],
                                      repeat=j)]  # fmt: skip
    axes = drawn(found, "figure-3").axes[0]
    assert [text.get_text() for text in axes.texts] == ["outside: wild"]
    assert len(axes.collections) == 2
    uncropped = drawn(found, "figure-e3-uncropped").axes[0]
    assert not uncropped.texts and len(uncropped.collections) == 3


def test_panels_are_as_wide_however_many_curves_are_outside():
    found = [*made_evaluation("adam", [2.3, 1.0, 0.9, 0.8])]
    for k in range(20):
        found += made_evaluation(f"a-rather-long-name-{k}", [2.3, 90.0, 91.0, 92.0])
    figure = drawn(found, "figure-3")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_position().width > 0.7
    lines = axes.texts[0].get_text().splitlines()
    assert len(lines) > 3 and max(map(len, lines)) <= 70


def test_a_panel_of_an_oracle_that_ends_where_it_began_is_about_it():
    found = rows(made_evaluation("adam", [2.3, 0.1, 0.05, 0.1]),
                 made_evaluation("mine", [2.3, 0.1, 0.1, 0.1]))  # fmt: skip
    low, high = drawn(found, "figure-e3-accuracy").axes[0].get_ylim()
    assert 80 < low < high < 100


def test_a_panel_holds_what_curves_reach_on_their_way():
    found = rows(made_evaluation("adam", [2.3, 1.0, 0.9, 0.8]),
                 made_evaluation("mine", [2.3, 1.0, 0.3, 0.9]))  # fmt: skip
    axes = drawn(found, "figure-3").axes[0]
    assert axes.get_ylim()[0] < log(0.3)


def test_who_is_seen_most_has_the_first_colour():
    found = rows(*(made_evaluation("zeta", [2.0, 1.0], problem) for problem in ("a", "b")),
                 made_evaluation("alpha", [2.0, 1.0], "a"))  # fmt: skip
    assert style.look(summarize(found)).styles["zeta"].color == style.COLOURS[0]


def test_thirty_optimizers_differ_in_colour_or_line():
    found = rows(*(made_evaluation(f"policy-{i}", [2.0, 1.0]) for i in range(30)))
    styles = style.look(summarize(found)).styles.values()
    assert len({(s.color, s.linestyle) for s in styles}) == 30


def test_first_figure_compares_schemes_and_the_oracle_alone():
    names = [text.get_text() for text in drawn(small(), "figure-1").axes[0].get_yticklabels()]
    assert names == ["choice-large (4)", "oracle: adam (2)"]


def test_second_figure_has_learned_baselines_whatever_is_added_to_their_names():
    names = ("rnnprop+wd0.0003", "scale+ema0.998", "original/2", "adam", "adam+wd0.0003")
    figure = drawn(rows(*(made_evaluation(name, [2.0, 1.0]) for name in names)), "figure-2")
    shown = {text.get_text().split(" (")[0] for text in figure.axes[0].get_yticklabels()}
    assert shown == {*names[:3], "best teacher: adam"}


def test_a_teacher_alone_is_not_called_the_oracle(tmp_path, undrawn):
    found = rows(made_evaluation("adam", [2.0, 1.0]), made_evaluation("choice-large", [2.0, 0.9]))
    assert "adam (best teacher)" in summary_table(found)
    names = [text.get_text() for text in drawn(found, "figure-1").axes[0].get_yticklabels()]
    assert names == ["choice-large (1)", "best teacher: adam (1)"]
    write_report(found, tmp_path)
    overview = (tmp_path / "report.md").read_text().split("\n## ")[1]
    assert "no oracle, as of the six teachers only adam was evaluated" in overview
    assert "| best teacher | best teacher's loss |" in overview and "| oracle |" not in overview


@pytest.mark.parametrize("steps", [100, 101])
def test_fits_that_are_all_warm_up_are_said_first(steps, tmp_path, undrawn):
    found = rows(*(made_evaluation(name, [2.0, 1.0], steps=steps) for name in ("adam", "mine")))
    write_report(found, tmp_path)
    overview = (tmp_path / "report.md").read_text().split("\n## ")[1]
    assert ("mnist_cnn, 1 epoch: 100 steps are no more than the usual warm-up" in overview) == (
        steps == 100
    )


def test_figure_6_has_a_line_for_each_way_of_training():
    found, cards = [], {}
    for k, (added, strategy, noise) in enumerate((
        ("", "choice", {}), ("", "minmax", {}), ("", "choice", {"absolute": True}),
        ("", "choice", {"attack_steps": 3}), ("+wd0.01", "choice", {}),
    )):  # fmt: skip
        for magnitude in (1e-3, 1e-2):
            for replicate in (1, 2):
                origin = f"{k}/{magnitude}/{replicate}"
                perturbation = {"kind": "gaussian", "magnitude": magnitude} | noise
                cards[origin] = {"strategy": strategy, "pool": "large",
                                 "perturbation": perturbation}  # fmt: skip
                for repeat in (1, 2):
                    losses = [2.0, 0.1 * replicate + 0.03 * repeat]
                    found += made_evaluation(f"p{k}-{magnitude}{added}", losses, origin=origin,
                                             replicate=replicate, repeat=repeat)  # fmt: skip
    (figure,) = (d for d in drawings(summarize(found), cards) if d.file == "figure-6")
    (axes,) = figure.draw().axes
    assert all(len(line.get_xdata()) == 2 for line in axes.lines)
    assert {text.get_text().split(" (n = ")[0] for text in axes.get_legend().get_texts()} == {
        "gaussian, attack steps 1, choice",
        "gaussian, attack steps 1, minmax",
        "gaussian, absolute, attack steps 1, choice",
        "gaussian, attack steps 3, choice",
        "gaussian, attack steps 1, choice, +wd0.01",
    }


def figure_6(found, directory):
    """Its panels, by the cards in a directory of results."""
    figures = drawings(summarize(found), read_cards([directory]))
    (figure,) = (d for d in figures if d.file == "figure-6")
    return figure.draw().axes


def test_figure_6_reads_the_cards_of_train_py_and_those_with_magnitudes_by_kind(tmp_path):
    found = []
    by_train = {"phases": [{"rule": {"rule": "rnnprop"}}]}
    with closing(ResultsDirectory(tmp_path)) as directory:
        for k, how in enumerate((
            by_train | {"perturbation": {"kind": "adversarial", "magnitude": 0.002}},
            {"policy": "rnnprop", "gaussian": 0.0, "adversarial": 0.05},
            {"policy": "scale", "gaussian": 0.0, "adversarial": 0.05},
            {"policy": "scale", "gaussian": 0.0, "adversarial": 0.05, "phase": "choice"},
            {"policy": "scale", "gaussian": 0.0, "adversarial": 0.0},
        )):  # fmt: skip
            card = {"phase": "policy"} | how
            for replicate in (1, 2):
                directory.keep_card(f"{k}-{replicate}", card)
                for repeat in (1, 2):
                    losses = [2.0, 0.1 * replicate + 0.03 * repeat]
                    found += made_evaluation(f"p{k}", losses, origin=f"{k}-{replicate}",
                                             replicate=replicate, repeat=repeat)  # fmt: skip
    (axes,) = figure_6(found, tmp_path)
    assert {tuple(line.get_xdata()) for line in axes.lines} == {(0.002, 0.05), (0.05,)}
    assert len(axes.lines) == 3
    # Not as a formula, which would be drawn as it is written.
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.002", "0.05"]


@pytest.mark.skipif(not _DATA.exists(), reason="the repository's results are not in the wheel")
def test_figure_6_has_the_perturbed_replicates_of_the_results():
    found = [r for r in read_results(_DATA) if r.optimizer.startswith("minmax-small")]
    drawn = [axes.lines[0].get_xydata().tolist() for axes in figure_6(found, _DATA)]
    expected = []
    for case in dict.fromkeys((r.problem, r.epochs) for r in found):
        losses = {}  # best of each replicate and seed
        for r in found:
            if r.optimizer == "minmax-small-gaussian" and (r.problem, r.epochs) == case and r.epoch:
                key = r.replicate, r.seed
                losses[key] = min(losses.get(key, inf), r.validation_loss)
        table = np.log([losses[key] for key in sorted(losses)]).reshape(2, 3)
        means, others = table.mean(1, keepdims=True), table.mean(0)
        noise = ((table - means - others + table.mean()) ** 2).sum() / 2
        expected.append([[1e-3, sqrt(max(0, means.var(ddof=1) - noise / 3))]])
    assert len(expected) == 9
    np.testing.assert_allclose(drawn, expected, rtol=2e-3)


def test_styles_differ_and_do_not_depend_on_other_figures():
    cases = summarize(rows(*(made_evaluation(f"policy-{k}", [2.0, 1.0]) for k in range(20))))
    look = style.look(cases).styles
    assert len(look) == 20
    assert len({(s.color, s.marker, str(s.linestyle)) for s in look.values()}) == 20
