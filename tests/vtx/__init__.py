"""A host with Intel's VT-x: Bochs interprets a processor that has VMX, and in its Debian `kvm_intel` is a true KVM.

It is some ten times slower than the nested host and takes minutes for one command, so it is for few tests. It runs on the
nested host's disk image. `python -m tests.vtx -- COMMAND...` runs a command in it.
"""

from __future__ import annotations

from .host import CannotRun, Ended, run

__all__ = ["CannotRun", "Ended", "run"]
