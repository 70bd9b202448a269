"""The command line: `python -m tests.kvmhost run -- COMMAND...` and what goes with it."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict

from .arch import ARCHES, X86_64
from .channel import Sink, Streams
from .errors import CommandRefused, KvmHostError
from .host import Host, say_on_stderr
from .image import ensure_image
from .messages import Request, Result
from .qemu import ensure_qemu
from .settings import KINDS, PROJECT_IN_HOST, Size, cache_directory, machine_size, parse_size, profile_named
from .terminal import SizeWatch, raw

EXIT_TIMEOUT = 124  # as timeout(1) and env(1) have it
EXIT_OURS = 125
EXIT_REFUSED = 127


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tests.kvmhost", description="A warm nested KVM host for tests.")
    env = os.environ
    top.add_argument("--profile", choices=KINDS, default=env.get("AIOVMM_KVMHOST_PROFILE", "default"))
    top.add_argument("--arch", choices=ARCHES, default=env.get("AIOVMM_KVMHOST_ARCH", X86_64.name))
    models = "; ".join(f"{arch.name}: {', '.join(arch.processors)}" for arch in ARCHES.values())
    top.add_argument("--cpu", metavar="MODEL", help=f"{models}; default: the first")
    commands = top.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="run a command in the host; start it and push the project as needed")
    _add_run_options(run)
    run.add_argument("argv", nargs="+", metavar="COMMAND", help="after --: the command and its arguments")

    shell = commands.add_parser("shell", help="an interactive shell in the host")
    shell.add_argument("--cwd", default=PROJECT_IN_HOST)

    start = commands.add_parser("start", help="start the host if it does not run; with a size, one of that size")
    start.add_argument("--cpus", type=int)
    start.add_argument("--memory", help="like 8G")
    commands.add_parser("stop", help="end the host")
    commands.add_parser("status", help="say whether it runs, since when, and who uses it").add_argument(
        "--json", action="store_true"
    )
    build = commands.add_parser("build", help="build the image, if there is none of the present recipe")
    build.add_argument("--force", action="store_true", help="build anew, with today's Debian packages")
    commands.add_parser("push", help="bring the project's code in the host up to date")

    pull = commands.add_parser("pull", help="copy a file or directory out of the host")
    pull.add_argument("path", help=f"in the host; relative to {PROJECT_IN_HOST}")
    pull.add_argument("destination", nargs="?", default=".", type=pathlib.Path)
    install = commands.add_parser("install", help="install a built wheel in an environment of its own there")
    install.add_argument("wheel", type=pathlib.Path)
    put = commands.add_parser("put", help="copy a file into the host")
    put.add_argument("file", type=pathlib.Path)
    put.add_argument("destination", help=f"in the host; relative to {PROJECT_IN_HOST}")
    return top


def _add_run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("--timeout", type=float, metavar="SECONDS", help=f"then end it, with status {EXIT_TIMEOUT}")
    run.add_argument("--cwd", default=PROJECT_IN_HOST, help="default: %(default)s, the project")
    run.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    run.add_argument("--stdin", action="store_true", help="pass standard input on (default: none)")
    run.add_argument("--tty", action="store_true", help="on a terminal of the host, connected to this one")
    run.add_argument("--leave", action="store_true", help="let processes it leaves behind go on")
    run.add_argument("--no-push", action="store_true", help="leave the project's code in the host as it is")
    run.add_argument(
        "--pull", action="append", default=[], metavar="PATH[:DESTINATION]", help="copy out when it has ended"
    )


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    # Ended by a signal, still leave all blocks: the terminal is restored, the command in the host ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return int(_COMMANDS[options.command](options))
    except CommandRefused as error:
        say_on_stderr(str(error))
        return EXIT_REFUSED
    except KvmHostError as error:
        say_on_stderr(str(error))
        return EXIT_OURS
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _host(options: argparse.Namespace, size: Size | None = None) -> Host:
    return Host(options.profile, arch=options.arch, cpu=options.cpu, size=size)


def _run(options: argparse.Namespace) -> int:
    host = _host(options)
    env = dict(one.partition("=")[::2] for one in options.env)
    with host.exclusive():
        if options.tty:
            result = _on_terminal(host, options.argv, options.cwd, env, push=not options.no_push)
        else:
            request = Request(
                options.argv, options.cwd, env, options.stdin, timeout=options.timeout, leave=options.leave
            )
            streams = Streams(_sink(sys.stdout.fileno()), _sink(sys.stderr.fileno()))
            if options.stdin:
                streams.stdin_fd = sys.stdin.fileno()
            result = host.stream(request, streams, push=not options.no_push)
        for wanted in options.pull:
            path, _, destination = wanted.partition(":")
            host.pull(path, pathlib.Path(destination or "."))
    return _exit_status(result, options.argv[0])


def _exit_status(result: Result, name: str) -> int:
    if result.leftovers:
        say_on_stderr(f"killed {result.leftovers} processes that {name} left behind (--leave keeps them)")
    if result.timed_out:
        say_on_stderr(f"{name} was ended after {result.seconds:.1f} s")
        return EXIT_TIMEOUT
    return result.status if result.status >= 0 else 128 - result.status


def _sink(fd: int) -> Sink:
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write


def _on_terminal(host: Host, argv: list[str], cwd: str, env: dict[str, str], *, push: bool) -> Result:
    fd = sys.stdin.fileno()
    if not os.isatty(fd):
        raise KvmHostError("standard input is not a terminal; leave out --tty")
    host.ensure_started()
    watch = SizeWatch(fd)
    env = {"TERM": os.environ.get("TERM", "linux"), **env}
    request = Request(argv, cwd, env, stdin=True, terminal=watch.size)
    write = _sink(sys.stdout.fileno())
    with raw(fd):
        return host.stream(request, Streams(write, write, stdin_fd=fd, resized=watch.changed), push=push)


def _shell(options: argparse.Namespace) -> int:
    return _exit_status(_on_terminal(_host(options), ["bash", "-i"], options.cwd, {}, push=True), "bash")


def _start(options: argparse.Namespace) -> int:
    size = None
    if options.cpus or options.memory:
        usual = machine_size(os.environ)
        memory = parse_size(options.memory) if options.memory else usual.memory
        size = Size(options.cpus or usual.cpus, memory)
    _host(options, size).ensure_started()
    return 0


def _stop(options: argparse.Namespace) -> int:
    say_on_stderr("stopped" if _host(options).stop() else "was not running")
    return 0


def _status(options: argparse.Namespace) -> int:
    status = _host(options).status()
    if options.json:
        print(json.dumps(asdict(status), indent=1))
    elif status.running:
        size = f"{status.started_with.get('cpus')} processors, {int(str(status.started_with['memory'])) >> 20} MiB"
        print(f"running as process {status.pid} for {status.uptime:.0f} s; {size}")
        print(f"used by {status.used_by}" if status.used_by else "used by nobody")
    else:
        print("not running")
    return 0 if status.running else 1


def _build(options: argparse.Namespace) -> int:
    cache = cache_directory(os.environ)
    arch = profile_named(options.profile, options.arch, options.cpu).arch
    notice = ensure_qemu(cache, os.environ, say_on_stderr, arch, force=options.force).notice
    if notice:
        say_on_stderr(f"it will run in {notice}")
    print(ensure_image(cache, say_on_stderr, arch, force=options.force).directory)
    return 0


def _push(options: argparse.Namespace) -> int:
    if not _host(options).push():
        say_on_stderr("up to date")
    return 0


def _pull(options: argparse.Namespace) -> int:
    _host(options).pull(options.path, options.destination)
    return 0


def _install(options: argparse.Namespace) -> int:
    if not options.wheel.is_file():
        raise KvmHostError(f"{options.wheel}: no such file; build one with: pip wheel --no-deps -w dist .")
    print(_host(options).install(options.wheel))
    return 0


def _put(options: argparse.Namespace) -> int:
    try:
        content, mode = options.file.read_bytes(), options.file.stat().st_mode & 0o777
    except OSError as error:
        raise KvmHostError(f"{options.file}: {error.strerror}") from error
    _host(options).put(content, options.destination, mode=mode)
    return 0


_COMMANDS = {
    "run": _run,
    "shell": _shell,
    "start": _start,
    "stop": _stop,
    "status": _status,
    "build": _build,
    "push": _push,
    "pull": _pull,
    "put": _put,
    "install": _install,
}
