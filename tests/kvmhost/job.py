"""A command running in the nested host: its process, pipes or terminal, and the control group that holds all it starts.

Runs inside the host: standard library alone.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import signal
import struct
import subprocess
import termios
import time

from .messages import Request, Result

CGROUPS = pathlib.Path("/sys/fs/cgroup")
_GRACE = 3.0  # seconds between asking a command to end and killing it
_CHUNK = 64 * 1024
STDIN_LIMIT = 1024 * 1024  # bytes taken for a command that does not read them


class Job:
    """One command from start to result. The owner polls its descriptors and calls the methods."""

    _number = 0

    def __init__(self, request: Request, base_env: dict[str, str]) -> None:
        Job._number += 1
        self.request = request
        self.started = time.monotonic()
        self.timed_out = False
        self._kill_at: float | None = None
        self._group = CGROUPS / f"job-{Job._number}"
        self._group.mkdir()
        try:
            self._spawn({**base_env, "PWD": request.cwd, **request.env})
        except BaseException:
            self._group.rmdir()
            raise
        self.stdin_pending = bytearray()
        self._stdin_closing = False
        self.pidfd = os.pidfd_open(self._process.pid)

    def _spawn(self, env: dict[str, str]) -> None:
        self.terminal = -1
        ours: list[int] = []
        theirs: list[int] = []
        if self.request.terminal:
            master, slave = os.openpty()
            self.terminal = self.stdin = self.stdout = master
            self.stderr = -1
            ours, theirs = [master], [slave]
            stdin = stdout = stderr = slave
            self.resize(*self.request.terminal)
        else:
            stdin, self.stdin = os.pipe() if self.request.stdin else (os.open("/dev/null", os.O_RDONLY), -1)
            self.stdout, stdout = os.pipe()
            self.stderr, stderr = os.pipe()
            ours, theirs = [fd for fd in (self.stdin, self.stdout, self.stderr) if fd >= 0], [stdin, stdout, stderr]
        try:
            self._process = subprocess.Popen(
                self.request.argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=self.request.cwd,
                env=env,
                preexec_fn=self._in_child,
            )
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        for fd in ours:
            os.set_blocking(fd, False)

    def _in_child(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        (self._group / "cgroup.procs").write_text("0")
        os.setsid()
        if self.request.terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    # -- input and output

    def resize(self, rows: int, columns: int) -> None:
        if self.terminal >= 0:
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def offer(self, data: bytes) -> None:
        """Queue input; none closes it (a terminal gets its end-of-file character)."""
        if self.stdin < 0:
            return
        if data:
            self.stdin_pending += data
        elif self.terminal >= 0:
            self.stdin_pending += b"\x04"
        else:
            self._stdin_closing = True
        self.pump_stdin()

    def pump_stdin(self) -> None:
        try:
            while self.stdin_pending:
                del self.stdin_pending[: os.write(self.stdin, self.stdin_pending)]
        except BlockingIOError:
            return
        except OSError:  # the command closed its input: the rest has no reader
            self.stdin_pending.clear()
            self._stdin_closing = self.terminal < 0
        if self._stdin_closing and self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def read(self, fd: int) -> bytes | None:
        """What `fd` (stdout or stderr) has: bytes, none at its end, None if nothing is there now."""
        try:
            return os.read(fd, _CHUNK)
        except BlockingIOError:
            return None
        except OSError:  # EIO: the last holder of the terminal closed it
            return b""

    def forget(self, fd: int) -> None:
        """`fd` came to its end."""
        if fd == self.terminal:
            self.terminal = self.stdin = self.stdout = -1
        elif fd == self.stdout:
            self.stdout = -1
        else:
            self.stderr = -1
        os.close(fd)

    # -- ending

    def signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def check_time(self, now: float) -> None:
        """Enforce the time limit: ask first, then kill all."""
        limit = self.request.timeout
        if limit is not None and not self.timed_out and now - self.started > limit:
            self.timed_out = True
            self._kill_at = now + _GRACE
            self.signal(signal.SIGTERM)
        if self._kill_at is not None and now > self._kill_at:
            self.kill_all()

    def survivors(self) -> int:
        return len((self._group / "cgroup.procs").read_text().split())

    def kill_all(self) -> bool:
        """Kill every process of the group; False if one is still there after five seconds."""
        deadline = time.monotonic() + 5
        while True:
            (self._group / "cgroup.kill").write_text("1")
            if "populated 0" in (self._group / "cgroup.events").read_text():
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)

    def finish(self) -> Result:
        """The process has ended: reap it and, unless asked to leave them, kill what it left behind."""
        status = self._process.wait()
        leftovers = 0 if self.request.leave else self.survivors()
        if leftovers:
            self.kill_all()
        return Result(status, time.monotonic() - self.started, self.timed_out, leftovers)

    def close(self) -> None:
        """Release descriptors and the empty control group."""
        for fd in {self.stdin, self.stdout, self.stderr, self.pidfd} - {-1}:
            os.close(fd)
        self.stdin = self.stdout = self.stderr = self.terminal = self.pidfd = -1
        if not self.request.leave:
            try:
                self._group.rmdir()
            except OSError as error:
                print(f"agent: {self._group}: {error}", flush=True)
