"""The host with VT-x as far as it can be looked at without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.debian import Unpacked
from tests.guests import CACHE, HERE, build_all
from tests.vtx.bochs import configuration


def lines(text: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.splitlines())


@pytest.mark.parametrize("cpus", [1, 2])
def test_the_machine_has_vmx_and_leaves_the_disk_image_alone(cpus: int) -> None:
    told = lines(configuration(Unpacked(Path("/b")), Path("/images/disk.img"), cpus))
    assert told["cpu"].startswith(f"model=corei7_skylake_x, count={cpus}, ")
    assert "path=/images/disk.img, mode=volatile, journal=changes" in told["ata0-master"]
    assert told["romimage"] == "file=/b/usr/share/bochs/BIOS-bochs-latest"
    assert (told["com1"], told["com2"]) == ("enabled=1, mode=file, dev=console", "enabled=1, mode=file, dev=output")


def test_every_guest_is_assembled_for_it() -> None:
    build_all()
    made = {path.name.rpartition("-")[0] for path in CACHE.iterdir()}
    assert made >= {path.stem for path in HERE.glob("*.S")}


@pytest.mark.parametrize(
    ("place", "also"), [("usr/lib/x86_64-linux-gnu", ""), ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")]
)
def test_a_program_is_run_by_the_loader_of_its_own_debian(place: str, also: str, tmp_path: Path) -> None:
    """Debian 12 has it in /lib, Debian 13 in /usr/lib."""
    for name in filter(None, (place, also)):
        (tmp_path / name).mkdir(parents=True)
    loader = tmp_path / place / "ld-linux-x86-64.so.2"
    loader.touch()
    command = Unpacked(tmp_path).command("usr/bin/tool")
    assert command[0] == str(loader)
    assert str(tmp_path / place) in command[command.index("--library-path") + 1].split(":")
    assert command[-3:] == ("--argv0", "tool", str(tmp_path / "usr/bin/tool"))
