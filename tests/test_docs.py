"""The README and docs/: every block of code runs, links lead somewhere, nothing is stale.

A page's blocks run in order, in one directory that has what its reader has: the commands, a policy,
a compiled model and images. Comments before a block say what is different here:

    <!-- test: with --updates 1 -->   added to the block's `python` commands, to make them short
    <!-- test: skip, why -->          cannot run here
"""

import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import keras
import pytest

import l2o
from l2o import evaluation, problems, rules
from l2o.amalgamation.losses import SCHEMES
from l2o.commands import evaluate, report, train_options, tune
from l2o.policies.checkpoint import save_policy
from l2o.problems import PROBLEMS, load_dataset
from l2o.rules import Choice, RNNProp, get_pool
from l2o.rules.base import REGISTRY

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SLOW = ("docs/amalgamate.md", "docs/optimizer.md", "docs/tutorial.md")  # .ci/run runs them too
BLOCK = re.compile(
    r"(?:^<!-- test: (?P<note>.*?) -->\n+)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>.*?)")?\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
SKIPPED = {  # few, and each of them known here too
    "README.md": 2,  # the set-up: .ci/run runs it
    "docs/amalgamate.md": 1,
    "docs/method.md": 2,
    "docs/optimizer.md": 2,  # as those of performance.md
    "docs/performance.md": 19,  # test_benchmarks.py runs each with small settings
    "docs/reliability.md": 2,
    "docs/results.md": 4,
    "docs/results/data/modern/README.md": 1,
}


@dataclass(frozen=True)
class Block:
    """One block of code: its language, its text, its file's name if it is one, and its note."""

    language: str
    code: str
    title: str | None
    note: str


def blocks(page: Path) -> list[Block]:
    """A page's blocks of Python and shell."""
    found = [
        Block(m["language"], m["code"], m["title"], m["note"] or "")
        for m in BLOCK.finditer(page.read_text())
    ]
    unknown = {b.language for b in found} - {"python", "sh", "text", "bibtex"}
    assert not unknown, f"{page}: blocks of {unknown}"
    return [b for b in found if b.language in ("python", "sh")]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """What a page's reader has at hand: the namespace of its Python blocks, in a directory."""
    for name in ("train.py", "evaluate.py", "examples", "benchmarks", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    run = tmp_path / "runs" / "choice-large"
    for name, rule in (("policy", RNNProp(units=4)), ("choice", Choice(get_pool("large"), 4))):
        save_policy(run / name, rule, rule.initial_weights(0), {"problem": "digits_cnn"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    known = [(table, dict(table)) for table in (REGISTRY, SCHEMES, PROBLEMS)]
    digits = load_dataset("digits").train
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.AveragePooling2D(4), keras.layers.Flatten()]
        + [keras.layers.Dense(10, "softmax")]
    )
    yield {
        "model": model,
        "loss": "sparse_categorical_crossentropy",
        "images": digits.inputs[:256].astype("float32") / 255,
        "labels": digits.labels[:256],
    }
    for table, before in known:
        table.clear()
        table.update(before)
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_it_names_exist(name):
    """Those too that take too long to be run here, and those in a sentence."""
    text = re.sub(r"\\\\?\n *", " ", (ROOT / name).read_text())
    parsers = {"train": train_options, "tune": tune, "evaluate": evaluate, "report": report}
    for script, command, words in re.findall(
        r"python (?:(train|evaluate)\.py|-m l2o (train|tune|evaluate|report))"
        r"(?! --help)( [^\n`\"#|;&>)]*)",
        text,
    ):
        options = parsers[script or command].parser().parse_args(words.split())
        if "train" in (script, command):
            train_options.check(options)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, page in zip(NAMES, PAGES, strict=True)
    ],
)
@pytest.mark.filterwarnings("ignore:.*steps so far were warm-up")  # the reader has few images
def test_blocks_run(page, reader):
    for block in blocks(page):
        if block.note.startswith("skip, "):
            continue
        if block.title:
            Path(block.title).write_text(block.code)
        if block.language == "sh":
            run_shell(block.code, block.note.removeprefix("with "))
        else:
            exec(compile(block.code, block.title or str(page), "exec"), reader)


def run_shell(code: str, added: str) -> None:
    """Runs commands as a reader would, `python` being this one."""
    code = re.sub(r"^python .*$", rf"\g<0> {added}", code, flags=re.MULTILINE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_few_blocks_are_skipped():
    skipped = {
        name: count
        for name, page in zip(NAMES, PAGES, strict=True)
        if (count := sum(b.note.startswith("skip") for b in blocks(page)))
    }
    assert skipped == SKIPPED


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_to_files_lead_somewhere(page):
    """Anchors, and links between pages of the site, are checked where the site is built."""
    targets = re.findall(r"\]\(([^)#]+)", page.read_text())
    files = [target for target in targets if "://" not in target]
    assert [f for f in files if not (page.parent / f).exists()] == []


@pytest.mark.parametrize("room", [l2o, evaluation, problems, rules], ids=lambda room: room.__name__)
def test_the_api_lists_what_is_public(room):
    page = (ROOT / "docs/api.md").read_text()
    listed = set(re.findall(r"\w+", " ".join(re.findall(r"::: .*|members:(?:.|\n {8})*", page))))
    tables = {name for name in room.__all__ if isinstance(getattr(room, name), dict)}
    assert {*room.__all__} - tables <= listed
    assert len(room.__all__) == len({*room.__all__})


def test_the_tables_of_results_are_fresh():
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    pages = [(path, path.read_text()) for path in tables["PAGES"]]
    for path, text in pages:
        assert tables["page"](text) == text, f"{path} is stale: run python docs/tables.py"
    named = re.findall(r"<!-- table: (\w+) -->\n\n\|", "".join(text for _, text in pages))
    assert sorted(named) == sorted(tables["TABLES"])


def test_the_command_reference_is_fresh():
    reference = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    stale = "docs/commands.md is stale: run python docs/reference.py"
    assert reference["PAGE"].read_text() == reference["page"](), stale
