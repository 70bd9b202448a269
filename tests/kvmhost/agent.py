"""The nested host's end of the command channel: runs one command at a time and streams what it says.

Started by the host's init. One session at a time; a client that goes away, or a new one that says hello, ends the
command of the one before and all its processes. Runs inside the host: standard library alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import select
import signal
import time

from .frames import Decoder, Frame, Kind, encode, split
from .job import STDIN_LIMIT, Job
from .messages import Hello, Request, pack, unpack

PORT_NAME = "org.aiovmm.kvmhost"
PROJECT_DIGEST = pathlib.Path("/root/aiovmm/.kvmhost/digest")
_OUTPUT_LIMIT = 1024 * 1024  # bytes waiting for the client before the command's output is left in its pipes
_TICK_MS = 1000
_CHUNK = 64 * 1024


def find_port(name: str = PORT_NAME) -> str:
    """The device node of the virtio-serial port called `name`; FileNotFoundError if there is none."""
    for entry in pathlib.Path("/sys/class/virtio-ports").iterdir():
        label = entry / "name"
        if label.exists() and label.read_text().strip() == name:
            return f"/dev/{entry.name}"
    raise FileNotFoundError(f"no virtio-serial port is called {name}")


class Agent:
    def __init__(self, port: int) -> None:
        self._port = port
        self._decoder = Decoder()
        self._output = bytearray()
        self._job: Job | None = None
        self._boot_id = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def serve(self) -> None:
        while True:
            events = self._poll()
            now = time.monotonic()
            if events.get(self._port, 0) & select.POLLHUP:
                self._hang_up()
                continue
            if events.get(self._port, 0) & select.POLLIN:
                self._receive()
            if self._job:
                self._attend(self._job, events, now)
            self._flush()

    def _poll(self) -> dict[int, int]:
        poll = select.poll()
        job = self._job
        reading = job is None or len(job.stdin_pending) < STDIN_LIMIT
        poll.register(self._port, (select.POLLIN if reading else 0) | (select.POLLOUT if self._output else 0))
        if job:
            wanted = dict.fromkeys({job.pidfd}, select.POLLIN)
            if len(self._output) < _OUTPUT_LIMIT:
                wanted.update(dict.fromkeys({job.stdout, job.stderr}, select.POLLIN))
            if job.stdin_pending:
                wanted[job.stdin] = wanted.get(job.stdin, 0) | select.POLLOUT
            for fd, mask in wanted.items():
                if fd >= 0:
                    poll.register(fd, mask)
        events = dict(poll.poll(_TICK_MS if job else None))
        if not events:
            self._send(Frame(Kind.ALIVE))
        return events

    # -- the port

    def _send(self, *frames: Frame) -> None:
        for frame in frames:
            self._output += encode(frame)

    def _flush(self) -> None:
        try:
            while self._output:
                del self._output[: os.write(self._port, self._output[:_CHUNK])]
        except BlockingIOError:
            return
        except OSError:  # the client is gone: poll says so next
            self._output.clear()

    def _receive(self) -> None:
        try:
            data = os.read(self._port, _CHUNK)
        except BlockingIOError:
            return
        for frame in self._decoder.feed(data):
            self._handle(frame)

    def _hang_up(self) -> None:
        """Nobody is connected: end the command and sleep until somebody is (the port then raises SIGIO)."""
        self._abandon()
        self._decoder = Decoder()
        self._output.clear()
        signal.sigtimedwait([signal.SIGIO], 1.0)

    # -- requests

    def _handle(self, frame: Frame) -> None:
        if frame.kind is Kind.HELLO:
            self._abandon()
            self._output.clear()
            hello = unpack(Hello, frame.body)
            digest = PROJECT_DIGEST.read_text() if PROJECT_DIGEST.exists() else ""
            reply = Hello(hello.nonce, self._boot_id, digest, time.clock_gettime(time.CLOCK_BOOTTIME))
            self._send(Frame(Kind.HELLO, pack(reply)))
        elif frame.kind is Kind.EXEC:
            self._start(unpack(Request, frame.body))
        elif self._job is None:
            return  # input for a command that has just ended
        elif frame.kind is Kind.STDIN:
            self._job.offer(frame.body)
        elif frame.kind is Kind.RESIZE:
            self._job.resize(*json.loads(frame.body))
        elif frame.kind is Kind.SIGNAL:
            self._job.signal(json.loads(frame.body))

    def _start(self, request: Request) -> None:
        self._abandon()
        try:
            self._job = Job(request, dict(os.environ))
        except (OSError, ValueError) as error:
            self._send(Frame(Kind.REFUSED, f"{request.argv[0]}: {error}".encode()))

    def _attend(self, job: Job, events: dict[int, int], now: float) -> None:
        if job.stdin in events and events[job.stdin] & ~select.POLLIN:
            job.pump_stdin()
        for fd, kind in ((job.stdout, Kind.STDOUT), (job.stderr, Kind.STDERR)):
            if fd in events:
                self._relay(job, fd, kind)
        job.check_time(now)
        if job.pidfd in events:
            result = job.finish()
            for fd, kind in ((job.stdout, Kind.STDOUT), (job.stderr, Kind.STDERR)):
                while self._relay(job, fd, kind):
                    pass
            self._send(Frame(Kind.EXIT, pack(result)))
            job.close()
            self._job = None

    def _relay(self, job: Job, fd: int, kind: Kind) -> bool:
        """Pass on what `fd` has; False if it has nothing more now."""
        data = job.read(fd) if fd >= 0 else None
        if data:
            self._send(*split(kind, data))
        elif data is not None:
            job.forget(fd)
        return bool(data)

    def _abandon(self) -> None:
        if self._job is None:
            return
        self._job.kill_all()
        self._job.finish()
        self._job.close()
        self._job = None


def main() -> None:
    for name in ("PYTHONPATH", "OLDPWD", "SHLVL"):  # ours and the init's, not the commands'
        os.environ.pop(name, None)
    # SIGIO announces that a client came or went; it is waited for, never delivered.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
    port = os.open(find_port(), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(port, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(port, fcntl.F_SETFL, fcntl.fcntl(port, fcntl.F_GETFL) | os.O_ASYNC)
    Agent(port).serve()


if __name__ == "__main__":
    main()
