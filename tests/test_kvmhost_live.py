"""The nested host itself: what a person and a test get from it, and what happens when things break."""

from __future__ import annotations

import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from tests.debian.stock import STOCK_KERNELS
from tests.kvmhost import CommandFailed, CommandRefused, Host, HostLost
from tests.kvmhost.settings import PROJECT

pytestmark = [pytest.mark.timeout(600), pytest.mark.thorough]
KVM_CREATE_VM = 0xAE01


@pytest.mark.kvmhost
def test_a_marked_test_finds_a_kvm_that_makes_a_virtual_machine() -> None:
    assert os.uname().nodename == "kvmhost"
    kvm = os.open("/dev/kvm", os.O_RDWR)
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    os.close(vm)
    os.close(kvm)


def run_cli(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.kvmhost", *arguments], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_until_gone(host: Host, pattern: str) -> None:
    host.run(["sh", "-c", f"while pgrep -f '{pattern}'; do :; done"], timeout=20).check()


def test_status_and_streams_come_back(kvmhost: Host) -> None:
    done = kvmhost.run(["sh", "-c", 'cat; echo "$A" >&2; exit 7'], stdin=b"in", env={"A": "b"}, cwd="/")
    assert (done.status, done.stdout, done.stderr) == (7, b"in", b"b\n")
    assert kvmhost.run(["sh", "-c", "kill -11 $$"]).status == -signal.SIGSEGV
    with pytest.raises(CommandFailed, match="status 1"):
        kvmhost.run(["false"]).check()


def test_a_command_that_is_not_there_is_refused(kvmhost: Host) -> None:
    with pytest.raises(CommandRefused, match="no-such-command"):
        kvmhost.run(["no-such-command"])


def test_a_command_over_its_time_is_ended_with_all_it_started(kvmhost: Host) -> None:
    done = kvmhost.run(["sh", "-c", "trap '' TERM; setsid sleep 1234 & wait; wait"], timeout=1)
    assert done.timed_out
    wait_until_gone(kvmhost, "^sleep 1234")


def test_what_a_command_leaves_behind_is_killed_unless_asked_to_leave_it(kvmhost: Host) -> None:
    assert kvmhost.run(["sh", "-c", "sleep 1235 >/dev/null 2>&1 & echo started"]).leftovers == 1
    assert kvmhost.run(["sh", "-c", "sleep 1236 >/dev/null 2>&1 & echo started"], leave=True).leftovers == 0
    assert kvmhost.run(["pkill", "-f", "^sleep 123[56]"]).status == 0
    wait_until_gone(kvmhost, "^sleep 123[56]")


def test_files_go_in_and_come_out(kvmhost: Host, tmp_path: pathlib.Path) -> None:
    content = os.urandom(3 << 20)
    kvmhost.put(content, "/tmp/in/file", mode=0o755)
    assert kvmhost.get("/tmp/in/file") == content
    kvmhost.pull("/tmp/in", tmp_path)
    assert (tmp_path / "in/file").read_bytes() == content
    assert (tmp_path / "in/file").stat().st_mode & 0o777 == 0o755
    with pytest.raises(CommandFailed, match="No such file"):
        kvmhost.get("/tmp/nothing")


def test_the_project_there_is_the_project_here(kvmhost: Host) -> None:
    version = kvmhost.run(["python", "-c", "import importlib.metadata as m; print(m.version('aiovmm'))"]).check()
    assert version.stdout
    there = kvmhost.run(["cat", "tests/test_kvmhost_live.py"]).check().stdout
    assert there == pathlib.Path(__file__).read_bytes()


def test_a_wheel_is_installed_beside_the_pushed_code(kvmhost: Host, tmp_path: pathlib.Path) -> None:
    wheel = tmp_path / "aiovmm-9.9-py3-none-any.whl"
    info = "aiovmm-9.9.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("aiovmm/__init__.py", "ORIGIN = 'wheel'")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: aiovmm\nVersion: 9.9\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    python = kvmhost.install(wheel)
    program = "import aiovmm, importlib.metadata as m, uvloop; print(aiovmm.ORIGIN, m.version('aiovmm'))"
    assert kvmhost.run([python, "-c", program], cwd="/").check().stdout == b"wheel 9.9\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("trap", ["", "trap '' INT TERM;"])
def test_a_client_that_is_killed_takes_its_command_along(number: signal.Signals, trap: str) -> None:
    with run_cli("run", "--", "sh", "-c", f"{trap} echo up; exec sleep 1237") as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        client.send_signal(number)
        client.communicate(timeout=30)
    wait_until_gone(Host(), "^sleep 1237")


def test_a_host_that_panics_is_reported_and_the_next_command_has_a_new_one(kvmhost: Host) -> None:
    with pytest.raises(HostLost, match="Kernel panic - not syncing: sysrq"):
        kvmhost.run(["sh", "-c", "echo c >/proc/sysrq-trigger"])
    assert kvmhost.run(["echo", "again"]).check().stdout == b"again\n"


def test_a_host_that_hangs_is_restarted(kvmhost: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.kvmhost.host._ANSWER_SECONDS", 2.0)
    pid = kvmhost.machine.pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert kvmhost.run(["echo", "again"]).check().stdout == b"again\n"
    assert kvmhost.machine.pid() not in (None, pid)


def test_the_host_outlives_its_starter_and_can_be_stopped(kvmhost: Host) -> None:
    assert kvmhost.stop()
    assert not kvmhost.stop()
    with run_cli("status") as status:
        status.communicate(timeout=30)
    assert status.returncode == 1
    started = time.monotonic()
    kvmhost.ensure_started()
    assert kvmhost.status().running
    assert kvmhost.status().uptime <= time.monotonic() - started + 1


@pytest.mark.parametrize("series", STOCK_KERNELS)
def test_a_stock_debian_kernel_boots_on_the_hosts_kvm(kvmhost: Host, series: str) -> None:
    boot = ["-kernel", f"/guest/{series}/vmlinuz", "-append", "console=ttyS0 panic=-1"]
    quiet = ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command = ["qemu-system-x86_64", "-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256M", *quiet, *boot]
    said = kvmhost.run(command, timeout=300).check().stdout
    release = kvmhost.get(f"/guest/{series}/release").strip()
    assert b"Linux version " + release in said
    assert b"Hypervisor detected: KVM" in said
    assert b"Kernel panic - not syncing: VFS: Unable to mount root fs" in said
