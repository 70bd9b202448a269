"""A guest is saved, its host is started anew, and the guest goes on."""

from __future__ import annotations

import json

import pytest

from tests.kvmhost import Host
from tests.kvmhost.settings import PYTHON_IN_HOST
from tests.system.life import Done, numbers
from tests.system.programs import compile_programs

pytestmark = [pytest.mark.timeout(1200), pytest.mark.thorough]
SAVED = "/var/tmp/saved"


def boot_of(host: Host) -> bytes:
    return host.get("/proc/sys/kernel/random/boot_id")


def lived(host: Host, module: str, *arguments: str) -> Done:
    command = [f"{PYTHON_IN_HOST}/bin/python", "-m", f"tests.system.{module}", *arguments]
    return Done(**json.loads(host.run(command, timeout=400).check().stdout))


@pytest.mark.parametrize("release", ["6.1", "6.12"])
def test_a_guest_goes_on_after_a_reboot_of_its_host(kvmhost: Host, release: str) -> None:
    """It has the same work, which goes on, and the right time: no counter of the host's is what it was."""
    compile_programs()
    kvmhost.run(["mkdir", "-p", SAVED]).check()
    before, first = lived(kvmhost, "first_life", SAVED, release), boot_of(kvmhost)
    archive = kvmhost.run(["tar", "-cSf", "-", "-C", SAVED, "."], timeout=200).check().stdout
    kvmhost.stop()
    assert boot_of(kvmhost) != first
    kvmhost.run(["sh", "-c", f"mkdir -p {SAVED} && tar -xSf - -C {SAVED}"], stdin=archive, timeout=200).check()
    now = lived(kvmhost, "life", f"{SAVED}/0", f"{SAVED}/1", f"{SAVED}/1.console", "")
    assert now.verified > before.verified
    assert now.uptime > before.uptime
    assert now.cut <= before.cut + 1
    counted = numbers(kvmhost.get(f"{SAVED}/0.console") + kvmhost.get(f"{SAVED}/1.console"))
    assert counted == list(range(1, len(counted) + 1))
    kvmhost.run(["rm", "-r", SAVED]).check()
