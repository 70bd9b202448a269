"""The whole exception tree. An error names the culprit: the user, the host, the guest, or a peer process.

AiovmmError
├── UsageError (ValueError)      the caller asked for something that cannot be; nothing was changed
│   ├── ConfigError              a configuration value or command-line option; names it
│   ├── ImageError               a kernel, initramfs or disk image that is not what it should be
│   ├── SnapshotError            a snapshot that is damaged or does not fit, or something that cannot be saved
│   └── StateError               the operation does not fit the state the VM or the device is in
├── HostError (OSError)          the host refused an operation: errno, operation and a hint what to do
│   └── KvmError                 the same for /dev/kvm and its ioctls
├── GuestError                   the guest broke a rule; its device needs a reset, the monitor lives on
│   ├── GuestFault               an address range outside guest memory
│   └── ChainError               a malformed descriptor chain or ring
├── HotplugError                 the guest refused what was to be added, taken or changed, or did not heed it
│   └── HotplugTimeout (TimeoutError)   not in time
├── PeerError                    a process at the other end of a socket broke its protocol
├── ConsoleEnded (EOFError)      the console ended before it said, or took, what was wanted
├── ExpectTimeout (TimeoutError) the console did not say what was expected in time
│   └── PatternTooSlow           what was expected takes too long to be looked for in what the guest prints
└── agent.AgentError             something that is run in a guest (aiovmm/agent/errors.py)
"""

from __future__ import annotations

import errno
import os

__all__ = [
    "MORE_THREADS",
    "AiovmmError",
    "ChainError",
    "ConfigError",
    "ConsoleEnded",
    "ExpectTimeout",
    "GuestError",
    "GuestFault",
    "HostError",
    "HotplugError",
    "HotplugTimeout",
    "ImageError",
    "KvmError",
    "PatternTooSlow",
    "PeerError",
    "SnapshotError",
    "StateError",
    "UsageError",
    "host_error",
    "not_started",
    "printable",
    "readable",
    "remedy",
    "shortened",
]

_REMEDIES = {
    errno.EMFILE: ("RLIMIT_NOFILE", "raise the limit of open files: `ulimit -n`"),
    errno.ENFILE: ("", "this machine has no more open files: raise fs.file-max by sysctl"),
    errno.EFBIG: ("RLIMIT_FSIZE", "raise the limit of file sizes: `ulimit -f`"),
    errno.ENOSPC: ("", "free some space there, or use another place"),
    errno.EDQUOT: ("", "free some space there, or have the quota raised"),
    errno.ENOMEM: (
        "RLIMIT_AS",
        "give the guest less memory, or raise the limits: `ulimit -v`, `-d` and `-l`, the cgroup's memory.max",
    ),
}

_NONE_LEFT = (errno.EMFILE, errno.ENFILE)
"""There may be anything where one looks, if one could look."""

MORE_THREADS = "raise the limits of threads and of memory: `ulimit -u` and `-v`, the cgroup's pids.max"


def remedy(number: int) -> str:
    """What to do about an errno that says that there is not enough of something; with the limit in force, where there is one."""
    name, text = _REMEDIES.get(number, ("", ""))
    limit = _limit(name) if name else -1
    return f"{text}, now {limit}" if limit >= 0 else text


def _limit(name: str) -> int:
    """The one in force; -1 if there is none, or it cannot be had."""
    if name == "RLIMIT_NOFILE":
        return os.sysconf("SC_OPEN_MAX")  # nothing could be imported
    try:
        import resource  # for who has run into one
    except ImportError:  # it is a file to be mapped, and there is no room for that either
        return -1
    return resource.getrlimit(getattr(resource, name))[0]  # RLIM_INFINITY is -1


def host_error(operation: str, error: BaseException) -> HostError | None:
    """What the operating system or the interpreter raised because there was too little of something, as a HostError; or None."""
    if isinstance(error, HostError):
        return error
    if isinstance(error, AiovmmError):
        return None
    if isinstance(error, OSError):
        path = error.filename if isinstance(error.filename, str) else None
        return HostError(operation, error.errno or errno.EIO, path=path)
    if isinstance(error, MemoryError) or _lost_its_error(error) or _had_no_lock(error):
        return HostError(operation, errno.ENOMEM)
    if isinstance(error, ImportError):
        return _not_loaded(operation, error)
    if isinstance(error, RuntimeError) and "new thread" in str(error):  # all that `threading` says
        return HostError(f"{operation}: starting a thread", errno.EAGAIN, MORE_THREADS)
    return None


_NO_ERROR = ("without exception set", "without setting an exception")


def not_started(operation: str, error: OSError, path: str) -> HostError:
    """What the system said where it did not begin the program at `path`: of a process EAGAIN is a limit."""
    hint = MORE_THREADS if error.errno == errno.EAGAIN else ""
    return HostError(operation, error.errno or errno.EIO, hint, path)


def _lost_its_error(error: BaseException) -> bool:
    """The interpreter's word where it had no memory for the MemoryError either."""
    return isinstance(error, SystemError) and any(words in str(error) for words in _NO_ERROR)


def _had_no_lock(error: BaseException) -> bool:
    """The interpreter's word for too little memory where it opens a file."""
    return isinstance(error, RuntimeError) and "can't allocate" in str(error)


_UNLOADED = {
    "failed to map segment": errno.ENOMEM,
    "cannot create shared object descriptor": errno.ENOMEM,
    "cannot allocate": errno.ENOMEM,
    "cannot map zero-fill pages": errno.ENOMEM,
    "Cannot allocate memory": errno.ENOMEM,
    "Error 24": errno.EMFILE,
    "Too many open files": errno.EMFILE,
}
"""The dynamic linker's words for a module that it had too little of something for; others are a broken installation's."""


def _not_loaded(operation: str, error: ImportError) -> HostError | None:
    """A module is one of several that need each other: what is said of the last may be that another one is not there."""
    cause: BaseException | None = error
    while cause is not None:
        number = next((number for words, number in _UNLOADED.items() if words in str(cause)), 0)
        if number or isinstance(cause, MemoryError):
            return HostError(f"{operation}: loading a library", number or errno.ENOMEM)
        cause = cause.__cause__ or cause.__context__
    return None


def printable(text: str) -> str:
    """`text` as one line that commands no terminal, whoever it quotes: a guest, a file, a peer. What cannot be printed is there
    as in a literal of Python's. A text that is so already stays as it is."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_LONGEST = 2000  # characters: a path may have 4096 bytes, and a value whatever a file has room for
_LONGEST_OUTPUT = 12_000  # of one that ends with what a guest has printed, whose last 2000 bytes are spelt there


def readable(text: str, most: int = _LONGEST) -> str:
    """`printable`, without the middle of one that quotes a value nobody would read to its end."""
    if len(text) <= most and len(line := printable(text)) <= most:
        return line
    left = f"[... of {len(text)} characters ...]"
    half = (most - len(left)) // 2
    return printable(text[:half])[:half] + left + printable(text[-half:])[-half:]


def shortened(text: str, most: int) -> str:
    """`text` as it is, without its middle if it has more than `most` characters."""
    left = f"[... of {len(text)} characters ...]"
    half = (most - len(left)) // 2
    return text if len(text) <= most else text[:half] + left + text[-half:]


class AiovmmError(Exception):
    """Base of every error that aiovmm raises on purpose. Its text is one line that can be printed, of a bounded length; its
    attributes are as they are, also where a guest has written them."""

    _longest = _LONGEST

    def __str__(self) -> str:
        return readable(super().__str__(), self._longest)


class UsageError(AiovmmError, ValueError):
    """The caller asked for something that cannot be done; nothing was changed."""


class ConfigError(UsageError):
    """A configuration value is not usable: `option` names it, `reason` says why, `hint` what to do next."""

    def __init__(self, option: str, reason: str, hint: str = "") -> None:
        self.option = option
        self.reason = reason
        self.hint = hint
        super().__init__(f"{option}: {reason}" + (f" ({hint})" if hint else ""))


class ImageError(UsageError):
    """A file is not the image it should be: `path` names it, `reason` says what is wrong with it."""

    def __init__(self, path: str, reason: str, hint: str = "") -> None:
        self.path = path
        self.reason = reason
        self.hint = hint
        super().__init__(f"{path}: {reason}" + (f" ({hint})" if hint else ""))


class SnapshotError(UsageError):
    """A snapshot that is damaged or does not fit this host, version or configuration; or what cannot be saved, and why."""


class StateError(UsageError):
    """The operation does not fit the present state."""


class HostError(AiovmmError, OSError):
    """The host refused `operation`: `errno` and its text, the file if there is one, and a hint what to do next."""

    def __init__(self, operation: str, errno_: int, hint: str = "", path: str | None = None) -> None:
        if not hint or errno_ in _NONE_LEFT:  # what else was to be done about the operation is not what is wrong
            hint = remedy(errno_)
        if errno_ == errno.ENOENT and not os.path.isabs(path or "") and not _has_directory():
            hint = "the working directory is not there any more: change to one that is"
        text = f"{operation}: {os.strerror(errno_)}" + (f" ({hint})" if hint else "")
        super().__init__(errno_, text, path)
        self.operation = operation
        self.hint = hint

    def __str__(self) -> str:
        return readable(f"{self.strerror}" + (f": {self.filename}" if self.filename else ""))


def _has_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


class KvmError(HostError):
    """KVM refused an operation."""


class GuestError(AiovmmError):
    """The guest broke a rule of the platform. Its device is put into NEEDS_RESET; nobody else is touched."""


class GuestFault(GuestError):
    """[address, address + size) does not lie in guest memory with the access that was asked for."""

    def __init__(self, address: int, size: int, what: str = "guest memory") -> None:
        self.address = address
        self.size = size
        super().__init__(f"{size} bytes at {address:#x} are not in {what}")


class ChainError(GuestError):
    """A descriptor chain or ring is malformed; `head` is the chain's head index where it is known."""

    def __init__(self, reason: str, head: int | None = None) -> None:
        self.head = head
        super().__init__(reason if head is None else f"chain {head}: {reason}")


class HotplugError(AiovmmError):
    """The guest was to take something up, or to let go of it, and has not: `reason` says what it did instead. It goes on."""

    def __init__(self, what: str, reason: str, hint: str = "") -> None:
        self.what = what
        self.reason = reason
        self.hint = hint
        super().__init__(f"{what}: {reason}" + (f" ({hint})" if hint else ""))


class HotplugTimeout(HotplugError, TimeoutError):
    """It has not heeded it in time."""


class PeerError(AiovmmError):
    """The process at the other end of a socket broke its protocol."""


class ConsoleEnded(AiovmmError, EOFError):
    """The console ended: its guest is gone. `received` is what had arrived and was not read."""

    _longest = _LONGEST_OUTPUT

    def __init__(self, what: str, received: bytes = b"") -> None:
        self.received = received
        tail = f"; {len(received)} unread bytes end: {received[-2000:]!r}" if received else ""
        super().__init__(f"the console has ended: {what}{tail}")


class ExpectTimeout(AiovmmError, TimeoutError):
    """The console did not match `pattern` in `timeout` seconds; `received` is what did arrive."""

    _longest = _LONGEST_OUTPUT

    def __init__(self, pattern: bytes, timeout: float, received: bytes) -> None:
        self.pattern = pattern
        self.timeout = timeout
        self.received = received
        tail = received[-2000:]
        super().__init__(f"no match for {pattern!r} in {timeout:g} s; {len(received)} bytes arrived, ending: {tail!r}")


class PatternTooSlow(ExpectTimeout):
    """To match `pattern` in `size` bytes of output takes longer than the event loop can wait: its repeats overlap."""

    def __init__(self, pattern: bytes, size: int, received: bytes) -> None:
        self.pattern = pattern
        self.timeout = 0.0
        self.received = received
        TimeoutError.__init__(
            self,
            f"{pattern!r} takes too long to match in {size} bytes that the guest printed: where a repeat stands in a repeat, or "
            f"beside one of the same bytes, the ways to match multiply; write it so that each byte fits in one place; "
            f"the output ends: {received[-200:]!r}",
        )
