"""`aiovmm run` of a guest that powers off at once, with every option and key and every kind of hostile value, and all that is
opened for it opened: it runs, or one line says what is wrong. Nothing hangs, and nothing is left behind. (How values are parsed:
test_hostile_options.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path

import pytest

from tests.cli.opening import WAITS, Outcome
from tests.cli.opening_lines import FILES, line, lines_of_keys, lines_of_words
from tests.conftest import THOROUGH
from tests.guests import build_kernel
from tests.limits import HANGS

ROOT = Path(__file__).resolve().parents[2]
PARTS = 64 if THOROUGH else 4
LONGEST = 2200  # characters that a line of ours has at most, and what a log's has before it

Line = list[str]


def chosen() -> Iterator[Line]:
    """All of them; or of each key's some, others for each, so that each value is there with some key of its kind."""
    turns: dict[int, Iterator[int]] = {}
    for lines in (*(lines for _, lines in lines_of_keys()), *(lines for _, lines in lines_of_words())):
        if THOROUGH:
            yield from lines
            continue
        yield from [words for words in lines if words[-1].endswith("\udcff\udcfe")][:1]  # what once hung
        turn = turns.setdefault(len(lines), count())
        for number in islice(turn, 5 if len(lines) == len(FILES) else 1):
            yield lines[number % len(lines)]


def outcomes(lines: Sequence[Line], place: Path, patience: float = HANGS) -> list[Outcome]:
    """Each in a process of its own, all in a network of their own."""
    apart = ["unshare", "--net"] if subprocess.run(["unshare", "--net", "true"]).returncode == 0 else []
    command = [*apart, sys.executable, "-m", "tests.cli.opening", str(patience)]
    kernel = str(build_kernel())
    given = "".join(json.dumps([kernel if word == "@kernel" else word for word in words]) + "\n" for words in lines)
    environment = {**os.environ, "TMPDIR": str(place)}
    done = subprocess.run(
        command, input=given, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment, check=True
    )
    return [Outcome(**json.loads(text)) for text in done.stdout.splitlines()]


def wrong(outcome: Outcome) -> str:
    """What is wrong about it, or nothing."""
    said = outcome.said.splitlines()
    ours, others = (
        [text for text in said if text.startswith("aiovmm: ")],
        [text for text in said if text.startswith("[warning")],
    )
    if outcome.code is None:
        return "hangs"
    if outcome.left:
        return "left something behind"
    if outcome.code not in (0, 1, 2):
        return "ends with another exit code"
    if outcome.code and (len(ours) != 1 or said[-1] != ours[0]):
        return "does not end with one line"
    if len(ours) + len(others) != len(said):
        return "says something that is no line of ours"
    if not all(text.isprintable() and len(text) <= LONGEST for text in said):
        return "has a line that is none to read"
    if WAITS in outcome.said and outcome.code != 1:
        return "was told to stop while it waited, and did not"
    return ""


@pytest.mark.timeout(600)  # each line has a limit of its own
@pytest.mark.parametrize("part", range(PARTS))
def test_it_runs_or_says_in_one_line_what_is_wrong(part: int, kvm: bool) -> None:
    lines = list(chosen())[part::PARTS]
    with tempfile.TemporaryDirectory(prefix="o") as place:  # a short name: sockets are made there
        found = outcomes(lines, Path(place))
    assert len(found) == len(lines)
    bad = [
        (why, [word[:80] for word in words if not word.startswith("/")], outcome)
        for words, outcome in zip(lines, found, strict=True)
        if (why := wrong(outcome))
    ]
    assert not bad
    codes = [outcome.code for outcome in found]
    assert codes.count(0) > len(codes) // 10, "as many guests run as is to be expected"
    assert codes.count(2) > len(codes) // 10


def test_who_hangs_is_found_and_what_is_left_too(tmp_path: Path, kvm: bool) -> None:
    """That is to say: the test above can fail."""
    (hung,) = outcomes([line("--no-shutdown")], tmp_path, 5.0)
    waited, ran = outcomes([line("--fs", "tag=t,socket=dead"), line()], tmp_path)
    assert (hung.code, wrong(hung)) == (None, "hangs")
    assert (waited.code, wrong(waited)) == (1, "")
    assert WAITS in waited.said
    assert (ran.code, ran.said, ran.left) == (0, "", [])
    assert wrong(Outcome(1, "Traceback (most recent call last):\n", 0.0, [])) == "does not end with one line"
    assert wrong(Outcome(0, "", 0.0, ["process x"])) == "left something behind"
