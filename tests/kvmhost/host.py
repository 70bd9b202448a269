"""The nested KVM host as an object: warm, shared by all who use it, one at a time."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from . import files, project
from .arch import X86_64
from .channel import Channel, Streams, capture
from .errors import HostLost
from .image import Image, ensure_image
from .iommufd import with_iommufd
from .lock import HostLock, holder
from .machine import Machine
from .messages import Hello, Request, Result
from .qemu import Qemu, ensure_qemu
from .results import Completed, Status
from .settings import PROJECT, PROJECT_IN_HOST, Size, cache_directory, machine_size, profile_named

_BOOT_SECONDS = 180.0
_ANSWER_SECONDS = 60.0
COME_FIRST = "AIOVMM_KVMHOST_FIRST"


def say_on_stderr(text: str) -> None:
    print(f"kvmhost: {text}", file=sys.stderr, flush=True)


class Host:
    """A nested host of one profile, architecture and processor.

    Every method locks it, waiting for other users; `exclusive()` keeps it longer.
    Methods raise KvmHostError's kinds. The host goes on running after the process that started it.
    """

    def __init__(
        self,
        profile: str = "default",
        *,
        arch: str = X86_64.name,
        cpu: str | None = None,
        size: Size | None = None,
        say: object = None,
    ) -> None:
        self.profile = profile_named(profile, arch, cpu)
        self._size = size
        self._say = say if callable(say) else say_on_stderr
        self._cache = cache_directory(os.environ)
        self.directory = self._cache / "hosts" / self.profile.name
        self.machine = Machine(self.directory, self.profile)
        self._lock = HostLock(self.directory / "lock", self._say)
        self._fresh = False

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[Host]:
        """Nobody else uses the host in this block."""
        with self._lock:
            yield self

    # -- life

    def ensure_started(self) -> None:
        """Build, start or restart what is needed, so that the host answers and has the project's present code."""
        with self._session():
            pass

    def stop(self) -> bool:
        """End the host; False if none ran."""
        with self._lock:
            return self.machine.stop()

    def status(self) -> Status:
        pid = self.machine.pid()
        used_by = holder(self.directory / "lock")
        if pid is None:
            return Status(False, self.profile.name, str(self.directory), used_by)
        facts = self.machine.started_with()
        return Status(True, self.profile.name, str(self.directory), used_by, pid, self.machine.age(), facts)

    @contextlib.contextmanager
    def _session(self, *, push: bool = True) -> Iterator[Channel]:
        with self._lock:
            channel, hello = self._open()
            if os.environ.get(COME_FIRST, "") not in ("", "0") and not self.machine.come_first():
                self._say(f"{COME_FIRST} has no effect: this user may not have real-time processes")
            with channel:
                if push:
                    self._push(channel, hello)
                try:
                    yield channel
                except HostLost as error:
                    raise self._explain(error) from error

    def _open(self) -> tuple[Channel, Hello]:
        """A session with a host that fits: the running one, or one started now."""
        arch = self.profile.arch
        image = ensure_image(self._cache, self._say, arch)
        if self.profile.iommufd:
            image = with_iommufd(self._cache, image, self._say)
        qemu = ensure_qemu(self._cache, os.environ, self._say, arch)
        pid = self.machine.pid()
        if pid is not None:
            misfit = self._misfit(image, qemu)
            if misfit:
                self._say(f"restarting the nested host: {misfit}")
                self.machine.stop()
            else:
                try:
                    return self._greet(_ANSWER_SECONDS)
                except (HostLost, OSError) as error:
                    self._say(f"restarting the nested host, which is broken: {error}")
                    self.machine.stop()
        started = time.monotonic()
        self._say(f"starting the nested host{f' in {qemu.notice}' if qemu.notice else ''}")
        self.machine.start(image, qemu, self._size or machine_size(os.environ))
        try:
            channel, hello = self._greet(_BOOT_SECONDS)
        except HostLost as error:
            self.machine.stop()
            raise self._explain(error) from error
        self._say(f"up after {time.monotonic() - started:.1f} s")
        return channel, hello

    def _misfit(self, image: Image, qemu: Qemu) -> str:
        """Why the running host cannot be used; empty if it can. Its size matters only where one was asked for."""
        facts = self.machine.started_with()
        running = Size(int(str(facts.get("cpus", 0))), int(str(facts.get("memory", 0))))
        if facts.get("made_of") != self.machine.made_of(image, qemu, running):
            return "it is out of date"
        return "another size is wanted" if self._size not in (None, running) else ""

    def _greet(self, timeout: float) -> tuple[Channel, Hello]:
        channel = Channel.connect(self.machine.socket)
        try:
            return channel, channel.hello(timeout)
        except BaseException:
            channel.__exit__(None, None, None)
            raise

    def _explain(self, error: HostLost) -> HostLost:
        return HostLost(f"{error}\nthe end of its console ({self.machine.console_log}):\n{self.machine.last_words()}")

    # -- work

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        cwd: str = PROJECT_IN_HOST,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        leave: bool = False,
    ) -> Completed:
        """Run a command to its end and return what it said. Processes it leaves behind are killed unless `leave`."""
        stdout, stderr = bytearray(), bytearray()
        request = Request(list(argv), cwd, dict(env or {}), stdin is not None, None, timeout, leave)
        result = self.stream(request, Streams(stdout.extend, stderr.extend, stdin))
        return Completed(
            request.argv,
            result.status,
            bytes(stdout),
            bytes(stderr),
            result.seconds,
            result.timed_out,
            result.leftovers,
        )

    def stream(self, request: Request, streams: Streams, *, push: bool = True) -> Result:
        """Run a command with its streams connected to `streams`."""
        with self._session(push=push) as channel:
            return channel.execute(request, streams)

    def push(self) -> bool:
        """Bring the host's copy of the project up to date; False if it was (a started host always is)."""
        with self._lock:
            channel, hello = self._open()
            with channel:
                return self._push(channel, hello)

    def _push(self, channel: Channel, hello: Hello) -> bool:
        tree = project.project_tree(PROJECT, self.profile.arch)
        if not self.profile.arch.is_foreign:
            tree |= project.bare_metal_guests(PROJECT)
        contents = project.manifest(tree)
        if hello.project == project.digest(contents):
            return False
        old = capture(channel, ["cat", f"{project.STATE}/manifest.json"]) if hello.project else b"{}"
        update = project.Update.between(project.parse_manifest(old), contents)
        capture(channel, ["sh", "-c", project.APPLY_UPDATE], project.update_archive(tree, update))
        if hello.project:
            self._say(f"pushed {len(update.changed)} files, {len(update.gone)} gone")
        return True

    # -- files

    def get(self, path: str) -> bytes:
        """The contents of a file in the host. CommandFailed if it cannot be read."""
        with self._session(push=False) as channel:
            return capture(channel, ["cat", "--", files.absolute(path)])

    def put(self, content: bytes, path: str, *, mode: int = 0o644) -> None:
        """Write a file in the host, making its directory."""
        with self._session(push=False) as channel:
            capture(channel, files.write_command(path, mode), content)

    def pull(self, path: str, destination: pathlib.Path) -> None:
        """Copy a file or directory of the host to `destination`, or into it if that is a directory."""
        with self._session(push=False) as channel:
            archive = capture(channel, files.archive_command(path))
        files.unpack(archive, files.absolute(path), destination)

    def install(self, wheel: pathlib.Path) -> str:
        """Install a built wheel of the project in a fresh virtual environment of the host; its interpreter's path."""
        remote = f"/tmp/{wheel.name}"
        with self.exclusive():
            self.put(wheel.read_bytes(), remote)
            self.run(["sh", "-c", files.INSTALL_WHEEL, "install", remote], cwd="/", timeout=300).check()
        return f"{files.INSTALLED}/bin/python"
