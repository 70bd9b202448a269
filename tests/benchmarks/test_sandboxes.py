"""Sandboxes beside their peers: who fails is left out and says why; what one worker measures, and how."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aiovmm.rootfs import Image
from benchmarks import peers, sandbox_root, sandboxes
from benchmarks.harness import Options
from benchmarks.sandbox_worker import Worker, pss
from benchmarks.sandboxes import MEASURES, PEERS, Contestant, Failed, _compare, _measured


class Given:
    """A contestant with these values, in turn."""

    def __init__(self, name: str, *values: float | str) -> None:
        self.name = name
        self.reason = ""
        self.asked = 0
        self._values = values

    def measure(self, what: str) -> dict[str, float]:
        self.asked += 1
        value = self._values[self.asked - 1]
        if isinstance(value, str):
            raise Failed(value)
        return {row.key: value for row in MEASURES[what]}


def measured(what: str, *contestants: Given) -> Any:
    return _measured(what, MEASURES[what], contestants, 2)  # type: ignore[arg-type]


def test_the_first_time_does_not_count_and_who_fails_is_left_out() -> None:
    ours, boxlite, other = Given("aiovmm", 99, 1, 3), Given("boxlite", 99, 4, 6), Given("microsandbox", 99, "no room")
    result = measured("create", ours, boxlite, other)["create"]
    _compare(result, None, [ours, boxlite, other])  # type: ignore[list-item]
    assert result.samples == {"aiovmm": [1, 3], "boxlite": [4, 6]}
    assert (result.ratio, result.met) == (0.4, True)
    assert result.notes == {"microsandbox is left out": "create: no room"}
    assert other.asked == 2


def test_a_fork_is_compared_with_a_creation_and_the_peers_are_not_asked_for_one() -> None:
    ours, boxlite = Given("aiovmm", 0, 10, 10, 0, 1, 1), Given("boxlite", 0, 20, 20)
    created = measured("create", ours, boxlite)["create"]
    forked = measured("fork", ours, boxlite)["fork"]
    _compare(forked, created, [ours, boxlite])  # type: ignore[list-item]
    assert (forked.ratio, forked.met, boxlite.asked) == (0.05, True, 3)


def test_without_a_peer_there_is_no_target_and_ours_may_not_fail() -> None:
    result = measured("exec", Given("aiovmm", 0, 1, 2))["exec"]
    _compare(result, None, [])
    assert (result.met, result.target) == (None, None)
    with pytest.raises(Failed):
        measured("exec", Given("aiovmm", "it does not boot"))


def test_a_peer_that_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxes, "PLACE", tmp_path / "none")
    for name in PEERS:
        with Contestant(name, tmp_path, Options(quick=True)) as one, pytest.raises(Failed, match=f"'{name}'"):
            one.measure("create")


def test_a_worker_that_ends(tmp_path: Path) -> None:
    with Contestant("nonsense", tmp_path, Options(quick=True)) as one, pytest.raises(Failed, match="KeyError"):
        one.measure("create")
    with Contestant("nonsense", tmp_path, Options(quick=True)) as one:
        one._process.kill()
        one._process.wait()
        with pytest.raises(Failed, match="its process has ended: it said nothing"):
            one.measure("create")


def test_a_peer_is_brought_once_and_one_that_cannot_be_had_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def host(arch: str, *words: str, check: bool = False) -> int:
        asked.append(" ".join(words))
        return int(words[-1].endswith(("new", "gone")))

    def download(peer: str, arch: str, folder: Path) -> Path:
        if peer == "gone":
            raise subprocess.CalledProcessError(1, ["pip", "download", peer])
        return folder / f"{peer}.whl"

    monkeypatch.setattr(peers, "_host", host)
    monkeypatch.setattr(peers, "_download", download)
    peers.bring(["there", "new", "gone"], "x86_64")
    place = "/var/tmp/aiovmm-peers"
    assert [words for words in asked if "put" not in words] == [
        f"run -- test -d {place}/there",
        f"run -- test -d {place}/new",
        "run --timeout 600 -- python -m pip install --quiet --no-index --no-deps --no-compile"
        f" --target {place} /var/tmp/new.whl",
        f"run -- test -d {place}/gone",
    ]
    assert [words.split()[-1] for words in asked if "put" in words] == ["/var/tmp/new.whl"]
    assert capsys.readouterr().err == "gone is left out: pip download gone ended with 1\n"


class Plain:
    """A kind whose boxes are folders of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = self.most = self.made = 0

    async def create(self) -> Path:
        self.now += 1
        self.most = max(self.most, self.now)
        self.made += 1
        return self.folder

    async def freeze(self, box: Path) -> Path:
        return box

    async def fork(self, template: Path) -> Path:
        assert template == self.folder
        return await self.create()

    async def run(self, box: Path, *words: str) -> int:
        return _printed([word.replace("/data", str(box)) for word in words])

    async def copy_in(self, box: Path, here: Path, there: str) -> None:
        shutil.copy(here, there.replace("/data", str(box)))

    async def copy_out(self, box: Path, there: str, here: Path) -> None:
        shutil.copy(there.replace("/data", str(box)), here)

    async def stop(self, box: Path) -> None:
        self.now -= 1


def _printed(words: list[str]) -> int:
    return len(subprocess.check_output(words))


async def test_what_a_worker_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.sandbox_worker._IDLE", 0.0)
    (tmp_path / "box").mkdir()
    kind = Plain(tmp_path / "box")
    worker = Worker(kind, tmp_path, 1)
    keys = {"create": {"create"}, "fork": {"fork"}, "four": {"four", "pss", "stop"}, "exec": {"exec"}}
    for what, rows in MEASURES.items():
        values = await getattr(worker, what)()
        assert {*values} == {row.key for row in rows} == keys.get(what, {"in", "out", "stdout"})
    assert (kind.now, kind.most, kind.made) == (1, 4, 1 + 2 + 4 + 1)
    assert pss() > 1


async def test_the_root_is_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_root, "GUESTS", tmp_path / "guests")
    busybox = tmp_path / "guests/bin/busybox"
    busybox.parent.mkdir(parents=True)
    busybox.write_text("#!/bin/sh\necho busybox; echo cat\n")
    busybox.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sandbox_root.make(tmp_path / "made")
    assert os.readlink(tmp_path / "made/root/bin/cat") == "busybox"
    built = await Image.from_oci(tmp_path / "made/layout").build()
    assert built.config.env == {"PATH": "/bin"}
    built.close()
    index = json.loads((tmp_path / "made/layout/index.json").read_text())
    assert index["manifests"][0]["platform"]["os"] == "linux"
