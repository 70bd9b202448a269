"""Give up paths (landlock(7)): what a process and those that it starts may still open, and how."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from aiovmm.confine.paths import NEWER, OF_FILES, Grant, Right
from aiovmm.errors import ConfigError, HostError
from aiovmm.native import lib

__all__ = ["confine_paths", "part_from_processes"]

_TCP, _TCP_SINCE = 3, 4  # bind and connect, and the version of Landlock that knows them
_OF_OTHERS, _SCOPES_SINCE = 3, 6  # abstract sockets, and signals
_MISSING = (errno.ENOSYS, errno.EOPNOTSUPP)
_HINT = "this kernel has no Landlock (landlock is not among lsm= of its command line): leave it out"


def confine_paths(grants: Iterable[Grant]) -> None:
    """This thread, and those and the processes that it starts, for good: no path but what is granted, no TCP, no abstract sockets
    of others and no signals to them; what is open stays so. Raises HostError, and ConfigError while there are other threads,
    which would go on as they are."""
    version = lib.avmm_landlock_version()
    if version < 0:
        raise HostError("confine to paths", -version, _HINT)
    if len(os.listdir("/proc/self/task")) > 1:
        raise ConfigError("landlock", "this process has threads already, which could not be confined")
    handled = known_rights(version)
    ruleset = _checked(
        lib.avmm_landlock_ruleset(
            handled, _TCP if version >= _TCP_SINCE else 0, _OF_OTHERS if version >= _SCOPES_SINCE else 0
        )
    )
    try:
        for grant in grants:
            _allow(ruleset, grant, handled)
        _checked(lib.avmm_no_new_privileges())
        _checked(lib.avmm_landlock_enforce(ruleset))
    finally:
        os.close(ruleset)


def part_from_processes() -> None:
    """This thread, and those and the processes that it starts, for good: no other process is looked into, whoever's it is. /proc
    has ways into each (its root, its files, its memory), which are refused to who is in no Landlock domain of the other's; by
    paths nothing is taken away. Nothing where the kernel has no Landlock. Raises HostError."""
    version = lib.avmm_landlock_version()
    if version < 0:
        return
    handled = known_rights(version) & (Right.MAKE_BLOCK | Right.REFER)  # there is no domain without some
    ruleset = _checked(lib.avmm_landlock_ruleset(handled, 0, _OF_OTHERS if version >= _SCOPES_SINCE else 0))
    try:
        _allow(ruleset, Grant(Path("/"), handled), handled)
        _checked(lib.avmm_no_new_privileges())
        _checked(lib.avmm_landlock_enforce(ruleset))
    finally:
        os.close(ruleset)


def known_rights(version: int) -> Right:
    """What this version of Landlock can take away."""
    rights = Right(0)
    for right in Right:
        if version >= NEWER.get(right, 1):
            rights |= right
    return rights


def _allow(ruleset: int, grant: Grant, handled: Right) -> None:
    try:
        fd = os.open(grant.path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        if grant.needed:
            raise ConfigError("landlock_rules", f"there is no {grant.path}") from None
        return
    except OSError as exc:
        raise HostError("confine to paths", exc.errno or 0, path=str(grant.path)) from exc
    try:
        directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        rights = grant.rights & handled & (Right(~0) if directory else OF_FILES)
        if (result := lib.avmm_landlock_allow(ruleset, fd, rights)) != -errno.EBADFD:
            _checked(result)  # else it is a pipe behind /dev/stdout, say, in which Landlock has no part
    finally:
        os.close(fd)


def _checked(result: int) -> int:
    if result < 0:
        raise HostError("confine to paths", -result, _HINT if -result in _MISSING else "")
    return result
