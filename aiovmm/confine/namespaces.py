"""Mount and user namespaces of a process's own (namespaces(7)): what it is not granted is not there at all.

Landlock refuses paths; here they have no names, not even for what asks about them, and neither have mounts that come later.
System V's shared memory goes, too. Root keeps its user namespace, for TAPs and to become somebody else; who is not root gets one
of its own to be allowed this, in which it stays who it is, with no capability left in it. The network stays the host's: TAPs are.

/proc is the host's, too, and each process there is a way to that one's root. Landlock refuses that, where the kernel has it, and
to who is not root his user namespace does. Where there is neither, root is still kept from every process that has a capability
which is given up here, CAP_SYS_PTRACE first, as root's and other users' usually have or are; what is left are processes of root's
that somebody has taken all of these from.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from aiovmm.confine.landlock import part_from_processes
from aiovmm.confine.paths import Grant, Right
from aiovmm.errors import ConfigError, HostError
from aiovmm.native import lib

__all__ = ["enter_namespaces"]

_WRITES = Right.WRITE_FILE | Right.MAKE_REG | Right.MAKE_SOCK
_STAGE = "/proc"  # every system has it, and what is mounted there is out of the way again before anybody looks
_FORBIDDEN = (errno.EPERM, errno.EACCES, errno.ENOSPC)  # also by what the new user namespace is to be told
_KEPT = (
    *(1, 3, 6, 7),  # DAC_OVERRIDE and FOWNER, for files of others; SETGID and SETUID, to become somebody else
    *(12, 14, 23, 24),  # NET_ADMIN, for TAPs; IPC_LOCK, for memory that is locked; SYS_NICE, SYS_RESOURCE
)
"""Of root's capabilities (<linux/capability.h>). Not those by which one gets out of mounts: SYS_PTRACE, SYS_ADMIN, SYS_CHROOT,
MKNOD, DAC_READ_SEARCH (by handles of files), SYS_RAWIO, SYS_MODULE."""
_LINKS = 40  # as many as a path may lead over (path_resolution(7))
_HINT = (
    "this system lets its users make no namespaces (user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns): "
    "leave it out"
)


def enter_namespaces(grants: Iterable[Grant], option: str) -> None:
    """This process, for good: its root is an empty one, with the paths of `grants`, to be written to or only read. What is open
    stays so. Raises ConfigError while there are other threads, which would go on as they are, and for a path that has to be there
    and is not; HostError."""
    if len(os.listdir("/proc/self/task")) > 1:
        raise ConfigError(option, "this process has threads already, which would stay outside")
    grants = list(grants)
    wanted = _outermost(grants, option)
    try:
        _enter(wanted, [str(grant.path.absolute()) for grant in grants])
    except OSError as exc:
        if isinstance(exc, HostError):
            raise
        raise _refused(exc.errno or 0, exc.filename) from exc


def _enter(wanted: Mapping[str, Grant], names: list[str]) -> None:
    here = os.getcwd()
    mounts: list[tuple[str, int]] = []
    try:
        _unshare()
        for path, grant in wanted.items():
            mounts.append((path, _checked(lib.avmm_copy_mount(os.fsencode(path)))))
            if not grant.rights & _WRITES:
                _checked(lib.avmm_make_readonly(mounts[-1][1], True))
        _build(mounts, names, here)
    finally:
        for _, fd in mounts:
            os.close(fd)
    _checked(lib.avmm_be_root())
    if os.path.isdir(here):
        os.chdir(here)
    _checked(lib.avmm_no_new_privileges())
    if os.geteuid():
        _checked(lib.avmm_keep_capabilities(0))
    else:
        _checked(lib.avmm_keep_capabilities(sum(1 << number for number in _KEPT)))
        _checked(lib.avmm_keep_from_others())
    part_from_processes()


def _outermost(grants: Iterable[Grant], option: str) -> dict[str, Grant]:
    """By their true paths, those that no other one has below it with the same rights; the shorter first."""
    found: dict[str, Grant] = {}
    for grant in grants:
        path = os.path.realpath(grant.path)
        if not os.path.exists(path):
            if grant.needed:
                raise ConfigError(option, f"there is no {grant.path}")
            continue
        rights = grant.rights | (found[path].rights if path in found else Right(0))
        found[path] = Grant(Path(path), rights)
    kept: dict[str, Grant] = {}
    for path in sorted(found, key=len):
        above = [kept[parent] for parent in map(str, Path(path).parents) if parent in kept]
        if not any(each.rights & _WRITES or not found[path].rights & _WRITES for each in above):
            kept[path] = found[path]
    return kept


def _unshare() -> None:
    uid, gid = os.geteuid(), os.getegid()
    user = lib.CLONE_NEWUSER if uid else 0
    _checked(lib.avmm_unshare(lib.CLONE_NEWNS | lib.CLONE_NEWIPC | user))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        with suppress(OSError):  # read-only in some containers; seccomp refuses it as well
            Path("/proc/sys/user/max_user_namespaces").write_text("0")  # none below this one, where it would be root
    _checked(lib.avmm_part_mounts())


def _build(mounts: list[tuple[str, int]], names: list[str], here: str) -> None:
    """The new root, in which we are then."""
    root = _checked(lib.avmm_new_tmpfs())
    try:
        _checked(lib.avmm_attach_mount(root, _STAGE.encode()))
        os.chdir(_STAGE)
        os.makedirs(f".{here}", exist_ok=True)
        for path, fd in mounts:
            _make_place(f".{path}", directory=stat.S_ISDIR(os.fstat(fd).st_mode))
            _checked(lib.avmm_attach_mount(fd, os.fsencode(f".{path}")))
        for name in names:
            _link(name)
        _checked(lib.avmm_make_readonly(root, False))
    finally:
        os.close(root)


def _make_place(path: str, *, directory: bool) -> None:
    if os.path.lexists(path):
        return
    if directory:
        os.makedirs(path)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC))


def _link(name: str) -> None:
    """Symbolic links that lead to a path are there as they were."""
    for _ in range(_LINKS):
        link = next((p for p in [*reversed(Path(name).parents), Path(name)] if p.is_symlink()), None)
        if link is None:
            return
        target = os.readlink(link)
        if not os.path.lexists(f".{link}"):
            os.makedirs(f".{link.parent}", exist_ok=True)
            os.symlink(target, f".{link}")
        name = os.path.normpath(link.parent / target / Path(name).relative_to(link))


def _checked(result: int) -> int:
    if result < 0:
        raise _refused(-result)
    return result


def _refused(number: int, path: str | None = None) -> HostError:
    return HostError("enter namespaces of this process's own", number, _HINT if number in _FORBIDDEN else "", path)
