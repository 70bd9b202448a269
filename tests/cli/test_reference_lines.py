"""The reference monitor's command lines, run here on /dev/kvm; docs/reference.md says where it goes another way."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from aiovmm import architecture
from aiovmm.cli.arguments import spread_lists
from aiovmm.config.reference import Verdict, asks_for_nothing, rows
from aiovmm.config.text import unquote
from tests.cli.reference_lines import Line, Outcome, images, read_table, run_line
from tests.guests import build_kernel

LINES = read_table()
ROWS = {(row.option, row.key): row for row in rows()}
AT_ONCE = 6


@pytest.fixture(scope="module")
def outcomes(kvm: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Line, Future[Outcome]]]:
    """Of all lines; several run at once, in their order, for most of them wait most of the time."""
    if architecture.host() is not architecture.X86_64:
        pytest.skip("the host's kernel is not a PC's, whose lines these are")
    for tool in ("qemu-img", "qemu-storage-daemon", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install qemu-utils util-linux")
    if os.geteuid() != 0:
        pytest.skip("root alone can enter another system, or network")
    base = tmp_path_factory.mktemp("lines")
    made, kernel = base / "images", build_kernel()
    made.mkdir()
    images(made)

    def outcome(number: int) -> Outcome:
        directory = base / f"line{number}"
        try:
            return run_line(LINES[number].text, directory, made, kernel)
        finally:
            shutil.rmtree(directory, ignore_errors=True)  # of some hundreds, with images in each

    pool = ThreadPoolExecutor(AT_ONCE)
    yield {line: pool.submit(outcome, number) for number, line in enumerate(LINES)}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.text)
def test_a_line_does_what_the_table_says(line: Line, outcomes: dict[Line, Future[Outcome]]) -> None:
    outcome = outcomes[line].result()  # each has its deadline, from when its turn has come
    assert outcome.kind == line.here, outcome.said
    if outcome.kind == "refused":
        assert outcome.said.startswith("aiovmm: ")


def parts(text: str) -> list[tuple[str, str, str]]:
    """(option, key, value) of all that a line says; a value without a key has the key ""."""
    found: list[tuple[str, str, str]] = []
    words = iter(spread_lists(shlex.split(text)))
    for word in words:
        option, separator, value = word.partition("=")
        if not option.startswith("-"):
            continue
        if not separator and option not in FLAGS:
            value = next(words, "")
        found += [(option, key, said) for key, said in keys(value)] or [(option, "", "")]
    return found


FLAGS = ("--rng", "--watchdog", "--pvpanic", "--no-shutdown", "--landlock", "-v", "-vv", "-vvvv", "-V", "-h")


def keys(value: str) -> list[tuple[str, str]]:
    depth, found, piece = 0, [], ""
    for char in value + ",":
        depth += {"[": 1, "]": -1}.get(char, 0)
        if char == "," and not depth:
            found.append(piece)
            piece = ""
        else:
            piece += char
    pairs = (part.partition("=") for part in found if part)
    return [(key, said) if separator else (key, "") for key, separator, said in pairs]


BARE = {"--cpus": "boot", "--memory": "size"}
"""The key that a lone value is for."""


def rows_of(line: Line) -> list[tuple[Verdict, bool]]:
    """Verdict of each part that the document has a row for, and whether its value asks for nothing."""
    found = []
    for option, key, value in parts(line.text):
        for row in (ROWS.get((option, key)) or ROWS.get((option, BARE.get(option, key))), ROWS.get((option, ""))):
            if row is not None:
                nothing = asks_for_nothing(row.option, row.key, unquote(value if row.key else key))
                found.append((row.verdict, nothing))
    return found


@pytest.mark.parametrize("line", [line for line in LINES if line.here == "runs"], ids=lambda line: line.text)
def test_what_runs_here_is_nothing_that_the_document_says_is_refused(line: Line) -> None:
    assert not [verdict for verdict, nothing in rows_of(line) if verdict is Verdict.REFUSED and not nothing]


@pytest.mark.parametrize("line", [line for line in LINES if line.here != line.reference], ids=lambda line: line.text)
def test_a_line_that_goes_another_way_has_a_difference_in_the_document(line: Line) -> None:
    assert {verdict for verdict, _ in rows_of(line)} - {Verdict.SAME}


def test_most_lines_that_the_reference_runs_run_here() -> None:
    theirs = [line for line in LINES if line.reference == "runs"]
    ours = [line for line in theirs if line.here == "runs"]
    assert len(ours) / len(theirs) >= 0.95
