"""Faults to try programs with, drawn from a fixed seed, and what a refusal looks like."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


def cases(number: int):
    """So many cases of a property, the same ones every time."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=number, derandomize=True, database=None, deadline=None,
        suppress_health_check=quiet,
    )  # fmt: skip


def files_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def assert_refused(main, *words: str) -> str:
    """The one line that a command says as it exits with status 2."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        with pytest.raises(SystemExit) as end:
            main(list(words))
    said = error.getvalue()
    assert end.value.code == 2, said
    assert said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said, said
    return said


@st.composite
def mutations(draw):
    """A function from bytes to other bytes: some flipped, cut out, put in, or cut off."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "end", "empty"]))
    place, other = draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=9))

    def mutate(content: bytes) -> bytes:
        at = int(place * (len(content) - 1))
        if kind == "flip":
            return content[:at] + bytes([content[at] ^ (other[0] or 1)]) + content[at + 1 :]
        after = {"cut": content[at + len(other) :], "insert": other + content[at:], "end": b""}
        return content[:at] + after[kind] if kind in after else b""

    return mutate


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([10**12, 10**40, 1e308, -0.5]),
    st.just(float("nan")), st.text(max_size=4), st.just([]), st.just({}), st.just([[1, [2]]]),
    st.sampled_from(["../../etc/passwd", "/etc/passwd", "..", ".", "\0", "object", "x" * 300]),
)  # fmt: skip


def places(value, here=()):
    """The paths of all values within a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield (*here, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*here, key))


@st.composite
def forgeries(draw, original: dict):
    """A JSON object with one of its values replaced, at any depth."""
    forged = json.loads(json.dumps(original))
    path = draw(st.sampled_from(sorted(places(forged), key=str)))
    inner = forged
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = draw(JUNK)
    return forged
