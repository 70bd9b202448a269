"""Each target for some seconds, from the corpus that is kept: what no longer builds, and a fault that is near, are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.campaign import commands, run
from tests.fuzz.corpus import pack, unpack
from tests.fuzz.native_targets import CLANG, NATIVE

SECONDS = 2


@pytest.mark.skipif(CLANG is None, reason="needs clang")
@pytest.mark.parametrize("name", NATIVE)
def test_native_code_withstands(name: str, tmp_path: Path) -> None:
    (command,) = commands([name], tmp_path).values()
    report = run(name, command, tmp_path, f"-max_total_time={SECONDS}")
    assert not report.failure, (tmp_path / f"{name}.log").read_text(errors="replace")[-4000:]
    assert report.executions > 100
    assert report.edges > 20


def test_a_corpus_comes_out_of_its_archive_as_it_went_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.corpus.HERE", tmp_path / "kept")
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "a").write_bytes(b"one")
    (tmp_path / "found" / "b").write_bytes(b"")
    pack("some", tmp_path / "found")
    assert unpack("some", tmp_path / "again", [b"two"]) == 3
    assert sorted(path.read_bytes() for path in (tmp_path / "again").iterdir()) == [b"", b"one", b"two"]
