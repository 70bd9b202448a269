"""What is asked of architectures by name: the host's, and what differs with it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aiovmm import ConsoleConfig, ConsoleMode, PayloadConfig, VMConfig, architecture, doctor
from aiovmm.boot import load_kernel
from aiovmm.cli.arguments import _last_console
from aiovmm.errors import HostError, ImageError
from aiovmm.kvm import architecture as kvm_architecture
from aiovmm.machine import architecture as machine_architecture

ARM = architecture.AARCH64


def pretend(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))


@pytest.mark.parametrize("known", architecture.ALL, ids=lambda a: a.name)
def test_the_hosts_is_the_one_that_uname_names(
    known: architecture.Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, known.name)
    assert architecture.host() is known


def test_on_another_host_it_is_said_what_to_use(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    pretend(monkeypatch, "riscv64")
    for ask in (kvm_architecture.of_host, machine_architecture.board_of_host, lambda: load_kernel(tmp_path)):
        with pytest.raises(HostError, match=r"riscv64.*x86-64 or arm64") as caught:
            ask()
        assert caught.value.hint


def test_the_doctor_looks_at_any_host(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "riscv64")
    found = {finding.question: finding for finding in doctor.examine("/nowhere/kvm")}
    assert found["system"].verdict is doctor.Verdict.MISSING
    assert "x86-64 or arm64" in found["system"].remedy
    assert found["kvm"].verdict is doctor.Verdict.MISSING
    assert "nested host" not in found


def test_the_doctor_looks_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def none_in_proc(self: Path, *args: Any, **kwargs: Any) -> str:
        if str(self).startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", none_in_proc)
    found = {finding.question: finding for finding in doctor.examine("/nowhere/kvm")}
    assert found["memory"].verdict is doctor.Verdict.LIMITED
    assert "mount -t proc" in found["memory"].remedy
    assert {"huge pages", "network", "io_uring", "guest images"} <= found.keys()


def test_what_kvm_lacks_for_every_guest_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm cannot be used")
    room = kvm_architecture.of_host()
    monkeypatch.setattr(room, "shortcomings", lambda _vm: [("no such controller", "use another host")])
    found = [(f.verdict, f.found, f.remedy) for f in doctor.examine() if f.question == "kvm"]
    assert found[1:] == [(doctor.Verdict.MISSING, "no such controller", "use another host")]


@pytest.mark.parametrize("known", architecture.ALL, ids=lambda a: a.name)
def test_the_default_command_line_names_the_serial_port_as_linux_does(
    known: architecture.Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, known.name)
    payload = PayloadConfig("kernel")  # type: ignore[arg-type]
    assert VMConfig(payload).cmdline == f"console={known.serial} panic=-1"
    tty = ConsoleConfig(ConsoleMode.TTY)
    assert VMConfig(payload, serial=tty, console=tty).cmdline == f"console={known.serial} panic=-1"
    assert _last_console(f"console=hvc0 console={known.serial},115200n8") == "serial"
    assert _last_console(f"console={known.serial} console=hvc0") == "hvc"
    assert _last_console(None) == "serial"


def test_a_serial_port_of_another_machine_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ARM.name)
    assert _last_console("console=ttyS0") == ""


def test_a_kernel_is_looked_at_by_the_hosts_room(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    """An arm64 Image is named where x86-64 kernels run, and the other way round."""
    image, bzimage = os.path.join(tmp_path, "Image"), os.path.join(tmp_path, "bzImage")
    with open(image, "wb") as file:
        file.write(b"MZ" + bytes(0x36) + b"ARMd" + bytes(0x1000))
    with open(bzimage, "wb") as file:
        file.write(bytes(0x1FE) + b"\x55\xaa\0\0HdrS" + bytes(0x1000))
    pretend(monkeypatch, architecture.X86_64.name)
    with pytest.raises(ImageError, match="an arm64 Linux Image; this machine runs x86-64 kernels"):
        load_kernel(image)
    pretend(monkeypatch, ARM.name)
    with pytest.raises(ImageError, match="a Linux bzImage for x86; this machine runs arm64 kernels"):
        load_kernel(bzimage)
