"""What a VM can be asked to do in its guest, by way of the agent that runs there (docs/agent.md)."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from aiovmm.errors import AiovmmError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aiovmm.agent import Agent, Completed, Process
    from aiovmm.agent.files import Files
    from aiovmm.agent.request import Text

__all__ = ["Commands"]


class Commands:
    """The methods are the agent's; nothing of it is imported before one is called."""

    _agent: Agent | None = None
    _env: Mapping[str, Text] = {}
    _cwd: Text | None = None
    _user: str | int | None = None

    def _make_agent(self) -> Agent:
        """Raises StateError if there is no way to the guest."""
        raise NotImplementedError

    @property
    def agent(self) -> Agent:
        """The agent in the guest: `ready`, `set_time`, `add_entropy`, `shutdown`. Raises StateError outside `async
        with`, and if the VM has no vsock device."""
        if self._agent is None:
            self._agent = self._make_agent()
        return self._agent

    def _variables(self, env: Mapping[str, Text] | None) -> Mapping[str, Text]:
        from aiovmm.runtime.arguments import a_mapping

        return self._env if env is None else {**self._env, **a_mapping(env, "env", '{"LANG": "C"}')}

    async def _ask_agent_to_end(self) -> None:
        """If it is known: for a guest that does not heed its power button. One that cannot be asked is on its way
        already."""
        if self._agent is not None and self._agent.connected:
            with suppress(AiovmmError):
                await self._agent.shutdown()

    @property
    def files(self) -> Files:
        """The guest's files: `read`, `write`, `list`, `stat`, `remove`, `mkdir`, `copy_in`, `copy_out`. Errors as of
        `agent`."""
        from aiovmm.agent.files import Files

        return Files(self.agent)

    async def run(
        self,
        args: Sequence[Text],
        *,
        input: bytes = b"",
        timeout: float | None = None,
        env: Mapping[str, Text] | None = None,
        cwd: Text | None = None,
        user: str | int | None = None,
        check: bool = False,
        limits: Mapping[str, int | tuple[int, int]] | None = None,
        output_limit: int = 256 << 20,
    ) -> Completed:
        """Run a command in the guest to its end: `.returncode`, and `.stdout` and `.stderr` as bytes.

        `input` is its standard input. After `timeout` seconds, or when the caller is cancelled, it is killed with all
        its session; a time-out is CommandTimeout, with the output so far. `env` is added to PATH, HOME, USER, LOGNAME
        and SHELL; `cwd` is "/" unless given; `user` is a name or number, "name:group" too, root if None; `limits` are
        those of setrlimit(2): {"nofile": 100}. Its output is complete when it has ended, even if a daemon of its still
        has it open; of each stream at most `output_limit` bytes are kept. With `check` a status other than 0 is
        CommandFailed. Raises also CommandNotFound, GuestOSError, OutputTooLong, AgentLost and what `agent.ready` does.
        """
        from aiovmm.agent.run import run

        return await run(
            self.agent,
            args,
            input=input,
            timeout=timeout,
            env=self._variables(env),
            cwd=self._cwd if cwd is None else cwd,
            user=self._user if user is None else user,
            check=check,
            limits=limits,
            output_limit=output_limit,
        )

    async def create_process(
        self,
        *args: Text,
        stdin: int | None = -1,
        stdout: int | None = -1,
        stderr: int | None = -1,
        pty: bool | tuple[int, int] | None = None,
        env: Mapping[str, Text] | None = None,
        cwd: Text | None = None,
        user: str | int | None = None,
        limits: Mapping[str, int | tuple[int, int]] | None = None,
        ends: bool = False,
    ) -> Process:
        """Start a command in the guest, as asyncio.create_subprocess_exec does on the host: `stdin`, `stdout` and
        `stderr` are asyncio.subprocess.PIPE (the default here), DEVNULL, which None means too, and for stderr STDOUT.
        `pty` gives it a terminal in their place: True, or (columns, rows). With `ends` its output ends with it, as that
        of `run` does, even if a daemon of its still has it open. It runs until it ends, is killed, or the connection to
        the guest ends (SIGHUP). Errors as of `run`."""
        from aiovmm.agent.process import create

        streams = (stdin, stdout, stderr)
        env, cwd = self._variables(env), self._cwd if cwd is None else cwd
        user = self._user if user is None else user
        return await create(self.agent, args, streams, pty=pty, env=env, cwd=cwd, user=user, limits=limits, ends=ends)

    async def forward(
        self, guest: int | str, host: int | str | Path = 0, *, address: str = "127.0.0.1", back: bool = False
    ) -> int | str | Path:
        """Make the guest's port `guest` (or unix socket, by its path) reachable at `host`: a port of `address`, 0 for
        any, or the path of a unix socket. Returns that port or path. With `back` it is the other way: what connects to
        `guest` in the guest is connected to `host`; that ends when the guest is reset. Connections go through the
        agent; the guest needs no network. Raises UsageError, HostError, GuestOSError, and errors as of `agent.ready`."""
        forwards = self.agent.forwards
        if back:
            return await forwards.to_host(guest, host, address)
        return await forwards.to_guest(guest, host, address)

    async def unforward(self, place: int | str | Path, *, back: bool = False) -> None:
        """End what `forward` has returned, and its connections. Raises UsageError if there is no such."""
        await self.agent.forwards.end(place, back=back)
