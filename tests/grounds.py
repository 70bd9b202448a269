"""Which skips are excused where everything that a machine has must be tested: those for what no package can bring.

A missing program is no excuse, since the set-up installs it; nor is a nested host that does not start.
"""

from __future__ import annotations

import os

_OF_THE_MACHINE = (
    "root may write to everything",  # the test needs not to be root
    "root alone can enter another system",
    "no Python ",  # beside this one; Debian has one a release
    "the host's kernel ",  # is too old, or refuses
    "io_uring: ",  # the kernel's policy
    "no loop device: ",
    "no network namespace: ",
    "this tree, or its interpreter, is not everybody's to read",  # where the machine has put it
    "there is no /dev/full",
)


def skip_reason(longrepr: object) -> str:
    """What a skipped test's report gives as its reason: pytest keeps it as (path, line, "Skipped: reason")."""
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(text).removeprefix("Skipped: ")


def excused(reason: str, *, has_kvm: bool | None = None) -> bool:
    """Whether a skip for this reason may pass. `has_kvm`: whether the machine has /dev/kvm; looked up when None."""
    if reason.startswith("/dev/kvm cannot be used"):
        return not (os.path.exists("/dev/kvm") if has_kvm is None else has_kvm)
    return reason.startswith(_OF_THE_MACHINE)
