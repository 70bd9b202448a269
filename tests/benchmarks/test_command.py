"""`python -m benchmarks`, with a benchmark that needs no KVM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import many, many_memory, many_scale, many_waves
from benchmarks.__main__ import main, modules
from benchmarks.harness import Options, Result


def test_without_a_name_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == sorted(modules())
    assert {"boot", "blk", "net", "vsock", "output", "device_cost", "exits", "startup", "idle"} <= set(names)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(SystemExit, match="no benchmark nonsense; there are: "):
        main(["nonsense"])


def test_a_quick_run_prints_and_writes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data, picture = tmp_path / "a.json", tmp_path / "a.svg"
    arguments = ["startup", "--quick", "--only", "import aiovmm", "--json", str(data), "--svg", str(picture)]
    assert main(arguments) == 0
    assert "target: at most 1 x + 120 ms" in capsys.readouterr().out
    written = json.loads(data.read_text())
    assert written["where"]["kernel"]
    assert [result["name"] for result in written["results"]] == ["import aiovmm"]
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")

    again = tmp_path / "b.json"
    assert main(["virtqueue_cost", "--quick", "--only", "ring", "--from", str(data), "--json", str(again)]) == 0
    names = [result["name"] for result in json.loads(again.read_text())["results"]]
    assert names == ["import aiovmm", "ring, depth 1", "ring, depth 32"]


@pytest.mark.parametrize(("nested", "lost", "status"), [(True, 1, 0), (True, 2, 1), (False, 1, 1)])
def test_a_guest_that_the_nested_host_lost_has_another_attempt(
    nested: bool,
    lost: int,
    status: int,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One more, of all its rows."""
    attempts: list[int] = []

    def run(_: Options) -> Iterator[Result]:
        attempts.append(len(attempts))
        yield Result("first row", "s", "aiovmm", ("other",), samples={"aiovmm": [1.0], "other": [1.0]})
        if len(attempts) <= lost:
            raise TimeoutError("QEMU q35: no answer")
        yield Result("second row", "s", "aiovmm", ("other",), samples={"aiovmm": [1.0], "other": [1.0]})

    monkeypatch.setattr(modules()["startup"], "run", run)
    if nested:
        monkeypatch.setenv("AIOVMM_KVMHOST", "1")
    else:
        monkeypatch.delenv("AIOVMM_KVMHOST", raising=False)
    data = tmp_path / "a.json"
    assert main(["startup", "--quick", "--json", str(data)]) == status
    assert len(attempts) == min(lost + 1, 1 + nested)
    assert "no answer" in capsys.readouterr().err
    names = [result["name"] for result in json.loads(data.read_text())["results"]]
    assert names == ([] if status else ["first row", "second row"])


@pytest.mark.kvm
@pytest.mark.timeout(120)
def test_many_guests_in_short(tmp_path: Path) -> None:
    data = tmp_path / "many.json"
    assert main(["many", "--quick", "--rounds", "1", "--json", str(data)]) == 0
    results = {result["name"]: result for result in json.loads(data.read_text())["results"]}
    starts = {"from aiovmm import VM", "aiovmm run, to the first byte", "aiovmm run --restore, to the first byte"}
    own = {*starts, "creation", *many.ROWS}
    memory = {f"20 guests, no devices: {what}" for what in many_memory.ROWS}
    scale = {f"{count} guests: {what}" for count in (1, 5) for what in many_scale.ROWS}
    waves = {f"400 guests in waves of 100: {what}" for what in many_waves.ROWS}
    assert own | memory | scale | waves <= results.keys()
    medians = {name: result["medians"][result["ours"]] for name, result in results.items()}
    assert all(medians[name] > 0 for name in own)
    assert {medians[f"{count} guests: that answered"] for count in (1, 5)} == {100.0}
    assert medians["20 guests, no devices: descriptors a guest"] == 3
    assert medians["400 guests in waves of 100: descriptors, more in the second half"] <= 0


def test_the_agents_program_in_short(tmp_path: Path) -> None:
    data = tmp_path / "agent.json"
    assert main(["agent_program", "--quick", "--json", str(data)]) == 0
    results = json.loads(data.read_text())["results"]
    assert [row["name"] for row in results] == [
        "1 MiB of stdout",
        "1 MiB copied out",
        "1 MiB copied in",
        "60 short commands, 50 at once",
    ]
    assert all(value > 0 for row in results for samples in row["samples"].values() for value in samples)
