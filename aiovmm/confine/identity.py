"""Stop being root (setresuid(2)): whom to be instead, and the proof that nothing of root is left in any thread.

A user of its own for each guest is best: what runs as the same user may look into each other's memory and files.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from aiovmm.confine.imports import hold, reach
from aiovmm.errors import ConfigError, HostError
from aiovmm.native import lib
from aiovmm.runtime.dataclass import dataclass

__all__ = ["Identity", "become", "find", "keep_from_gaining"]

_LARGEST = (1 << 32) - 2  # the one after it is "leave it as it is" for setresuid(2)
_TASKS = Path("/proc/self/task")
_FLAGS = 6  # behind the name, in proc_pid_stat(5)
_IO_WORKER, _USER_WORKER = 0x10, 0x4000  # PF_* of <linux/sched.h>
_CAPABILITIES = ("CapPrm", "CapEff", "CapAmb")


@dataclass(frozen=True)
class Identity:
    """A user and a group of the host, by their numbers; `name` as somebody called the user."""

    name: str
    uid: int
    gid: int


def find(text: str, option: str) -> Identity:
    """`NAME`, `UID`, and either with `:GROUP` or `:GID`. Raises ConfigError, which names `option`: for whom nobody knows, for
    root, and if this process may not become anybody else."""
    who, separator, group = text.partition(":")
    if not who or (separator and not group):
        raise ConfigError(option, f"{text!r} is nobody", "say NAME, UID or UID:GID")
    uid, primary = _user(who, option)
    gid = _group(group, option) if group else primary
    if gid is None:
        raise ConfigError(option, f"user {who} is not in the user database, which would have its group", f"{who}:GID")
    if not uid or not gid:
        raise ConfigError(option, f"{text} is root's, which is to be given up", "name another user, and another group")
    if os.geteuid():
        reason = f"only root can become {who}, and this is user {os.geteuid()}"
        raise ConfigError(option, reason, "leave it out: what is not root has nothing to give up")
    return Identity(who, uid, gid)


def _user(who: str, option: str) -> tuple[int, int | None]:
    import pwd

    try:
        entry = pwd.getpwuid(_number(who, option)) if _is_number(who) else pwd.getpwnam(who)
    except KeyError:
        if _is_number(who):
            return int(who), None
        raise ConfigError(option, f"there is no user {who!r}", "`getent passwd` lists them") from None
    return entry.pw_uid, entry.pw_gid


def _group(group: str, option: str) -> int:
    if _is_number(group):
        return _number(group, option)
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(option, f"there is no group {group!r}", "`getent group` lists them") from None


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]+", text, re.ASCII) is not None


def _number(text: str, option: str) -> int:
    if len(text) > 10 or int(text) > _LARGEST:
        raise ConfigError(option, f"{text} is no number of a user or a group", f"at most {_LARGEST}")
    return int(text)


def keep_from_gaining() -> None:
    """Nothing that this thread, and those that it starts later, execute has more rights than they have, and the keys of root's
    session are not theirs. Raises HostError."""
    if result := lib.avmm_no_new_privileges():
        raise HostError("keep programs from gaining rights", -result)
    if result := lib.avmm_new_keyring():
        raise HostError("leave the session's keyring", -result, "see keyrings(7) for what limits them")


def become(identity: Identity, option: str) -> None:
    """All threads of this process, for good. Groups beside the given one go, and all capabilities; `keep_from_gaining` was called
    before there were threads. Raises HostError, ConfigError (imports.reach), and then this process must end: it may be anybody.

    The bounding set of capabilities stays as it was. It says what a program may gain by being executed, and none gains anything.
    """
    held = hold()
    try:
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    except OSError as exc:
        hint = "it takes CAP_SETUID and CAP_SETGID, and both numbers in the user namespace that this is (uid_map)"
        raise HostError(f"become user {identity.name}", exc.errno or 0, hint) from exc
    for task in _TASKS.iterdir():  # the C library changes threads of its own; we have others
        if (left := what_is_left(_status(task), identity)) and not _is_kernels(task):
            hint = "its capabilities are kept by whoever started it (SecureBits=, ambient ones): start it without"
            raise HostError(f"become user {identity.name}: {left}", errno.EPERM, hint)
    lib.avmm_own_again()
    reach(held, identity.name, option)


def _status(task: Path) -> dict[str, str]:
    try:
        lines = (task / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _is_kernels(task: Path) -> bool:
    """Whether it runs none of our code, ever: io_uring's workers, and since Linux 6.4 those of vhost and of KVM, are threads of
    the process that they work for, and stay whose they began as. What they do is done by the rights of whoever asked."""
    try:
        _, _, fields = (task / "stat").read_text().rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(int(fields.split()[_FLAGS]) & (_IO_WORKER | _USER_WORKER))


def what_is_left(status: dict[str, str], identity: Identity) -> str:
    """What a thread with this /proc/PID/status still is that it should not be; empty for nothing."""
    if not status:
        return ""
    for field, number in (("Uid", identity.uid), ("Gid", identity.gid)):
        if set(status[field].split()) != {str(number)}:
            return f"a thread has {field} {' '.join(status[field].split())}"
    if status["Groups"]:
        return f"a thread is in groups {status['Groups']}"
    if kept := [name for name in _CAPABILITIES if int(status.get(name, "0"), 16)]:
        return f"a thread has {kept[0]} {status[kept[0]]}"
    return "" if status["NoNewPrivs"] == "1" else "a thread may gain rights by what it executes"
