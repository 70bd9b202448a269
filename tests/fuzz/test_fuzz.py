"""Each target for some seconds, from the corpus that is kept: what no longer builds, and a fault that is near, are found."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.campaign import commands, run
from tests.fuzz.corpus import pack, unpack
from tests.fuzz.native_targets import CLANG, NATIVE
from tests.fuzz.targets import PYTHON, load

SECONDS = 2


@pytest.mark.skipif(CLANG is None, reason="needs clang")
@pytest.mark.parametrize("name", NATIVE)
def test_native_code_withstands(name: str, tmp_path: Path) -> None:
    (command,) = commands([name], tmp_path).values()
    report = run(name, command, tmp_path, f"-max_total_time={SECONDS}")
    assert not report.failure, (tmp_path / f"{name}.log").read_text(errors="replace")[-4000:]
    assert report.executions > 100
    assert report.edges > 20


@pytest.mark.parametrize("name", PYTHON)
def test_python_withstands(name: str, tmp_path: Path) -> None:
    """All that is kept, and for a second what comes of it by chance: guided by coverage it is under `make fuzz`."""
    target, chance = load(name), random.Random(1)
    unpack(name, tmp_path / "corpus", target.SEEDS)
    kept = sorted(path.read_bytes() for path in (tmp_path / "corpus").iterdir())
    for content in kept:
        target.run(content)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        target.run(changed(chance.choice(kept), chance))


def changed(content: bytes, chance: random.Random) -> bytes:
    """Something is put in, taken out, or overwritten, a few times."""
    text = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at, size = chance.randint(0, len(text)), chance.choice((0, 1, 1, 2, 4, 8))
        text[at : at + size] = chance.choice(
            (b"", chance.randbytes(1), chance.randbytes(size), b"\xff" * size, bytes(size))
        )
    return bytes(text)


def test_targets_for_which_there_is_nothing_to_run_them_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is said, and is no all-clear."""
    monkeypatch.setattr("tests.fuzz.campaign.ATHERIS", False)
    monkeypatch.setattr("tests.fuzz.__main__.ATHERIS", False)
    monkeypatch.setattr("sys.argv", ["tests.fuzz", "--place", str(tmp_path), PYTHON[0]])
    assert main() == 1
    assert "Atheris is not there" in capsys.readouterr().err


def test_a_corpus_comes_out_of_its_archive_as_it_went_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.corpus.HERE", tmp_path / "kept")
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "a").write_bytes(b"one")
    (tmp_path / "found" / "b").write_bytes(b"")
    pack("some", tmp_path / "found")
    assert unpack("some", tmp_path / "again", [b"two"]) == 3
    assert sorted(path.read_bytes() for path in (tmp_path / "again").iterdir()) == [b"", b"one", b"two"]
