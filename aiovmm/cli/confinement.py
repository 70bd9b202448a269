"""What `aiovmm run` gives up of its process's rights: --host-user, --seccomp, --namespaces, --landlock, --landlock-rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiovmm.cli.record_writer import let_threads_write
from aiovmm.config import VMConfig
from aiovmm.runtime.dataclass import dataclass

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from aiovmm.confine.identity import Identity

__all__ = ["Confinement"]


@dataclass(frozen=True)
class Confinement:
    """`seccomp`: "true", "false" or "log"; `rules`: texts of --landlock-rules; `identity`: whom it becomes, who is root."""

    seccomp: str = "true"
    landlock: bool = False
    namespaces: bool = False
    rules: tuple[str, ...] = ()
    identity: Identity | None = None
    says_who: str = "--user"

    @classmethod
    def of(cls, args: dict[str, Any]) -> Confinement:
        """Of the command's values. Raises ConfigError."""
        made = cls(args["seccomp"], args["landlock"], args["namespaces"], args["landlock_rules"], *_identity(args))
        made.check()
        return made

    def check(self) -> None:
        """Raise ConfigError for rules that are none, or that nobody would enforce."""
        if not self.rules:
            return
        from aiovmm.config.options import parse_landlock_rule
        from aiovmm.errors import ConfigError

        for rule in self.rules:
            parse_landlock_rule(rule)
        if not (self.landlock or self.namespaces):
            hint = "say --landlock, too, or --namespaces"
            raise ConfigError("--landlock-rules", "there is nothing that it is a rule of", hint)

    def hold_threads(self) -> None:
        """Before the first line is written to a file: until `begin` has been there are none, if there must not be any."""
        let_threads_write(not (self.landlock or self.namespaces))

    def begin(self, config: VMConfig, outputs: Iterable[Path]) -> None:
        """Before there are threads, and before anything that a guest has is opened, or one of `outputs` is made: give up paths.
        Raises ConfigError, HostError."""
        if self.identity is not None:
            from aiovmm.confine.identity import keep_from_gaining
            from aiovmm.confine.reopened import reopened

            list(reopened(config))
            keep_from_gaining()
        if not (self.landlock or self.namespaces):
            return
        from aiovmm.config.options import parse_landlock_rule
        from aiovmm.confine.guests import confine_paths_to, enter_namespaces_of

        rules, outputs = [parse_landlock_rule(rule) for rule in self.rules], list(outputs)
        if self.namespaces:
            enter_namespaces_of(config, rules, outputs, option="--namespaces")
        if self.landlock:
            confine_paths_to(config, rules, outputs, option="--landlock")
        let_threads_write(True)

    def why_refused(self) -> str:
        """What to say of something that the system did not let this process do; empty if it is not confined."""
        words = []
        if self.identity is not None:
            words.append(f"it is user {self.identity.name} and may open what that user may")
        if self.landlock or self.namespaces:
            words.append("--landlock-rules path=DIR,access=rw at its start lets it open what comes later")
        if self.seccomp == "true":
            words.append("--seccomp false lets it make interfaces and start helpers")
        return f"the guest's monitor is confined: {', and '.join(words)}" if words else ""

    def finish(self, config: VMConfig) -> None:
        """Once all is there that the guest is run with, and before it runs: be somebody else, and give up calls. Raises
        HostError, and ConfigError if the guest of `config` could not go on so."""
        if self.identity is not None:
            self._become(self.identity, config)
        if self.seccomp != "false" or self.identity is not None:
            from aiovmm.confine.limits import limit_resources

            limit_resources()
        if self.seccomp == "false":
            return
        from aiovmm.confine.seccomp import confine_calls

        if config.disks:
            from aiovmm.devices.virtio.blk.rings import keep

            keep(config.disks)
        confine_calls(log=self.seccomp == "log")

    def loop_factory(self, make: Callable[[], AbstractEventLoop]) -> Callable[[], AbstractEventLoop]:
        """`make`, or what makes such loops without what calls could be made by that are given up later."""
        if self.seccomp == "false":
            return make
        from functools import partial

        from aiovmm.confine.seccomp import without_rings

        return partial(without_rings, make)

    def _become(self, identity: Identity, config: VMConfig) -> None:
        from aiovmm.confine.identity import become
        from aiovmm.confine.reopened import check_reopened, reopened

        become(identity, self.says_who)
        check_reopened(reopened(config), identity, self.says_who)


def _identity(args: dict[str, Any]) -> tuple[Identity | None, str]:
    """Whom to become, and the option that says so."""
    given = [option for option in ("--user", "--host-user") if args[option[2:].replace("-", "_")] is not None]
    if not given:
        return None, ""
    from aiovmm.confine.identity import find

    if len(given) > 1:
        from aiovmm.errors import ConfigError

        raise ConfigError("--user", "says without --rootfs what --host-user does", "leave one of them out")
    return find(args[given[0][2:].replace("-", "_")], given[0]), given[0]
