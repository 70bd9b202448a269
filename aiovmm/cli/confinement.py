"""What `aiovmm run` gives up of its process's rights: --user, --seccomp, --namespaces, --landlock, --landlock-rules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiovmm.config import VMConfig
from aiovmm.runtime.dataclass import dataclass

if TYPE_CHECKING:
    from aiovmm.confine.identity import Identity

__all__ = ["Confinement"]

_USER = "--user"


@dataclass(frozen=True)
class Confinement:
    """`seccomp`: "true", "false" or "log"; `rules`: texts of --landlock-rules; `identity`: whom it becomes, who is root."""

    seccomp: str = "true"
    landlock: bool = False
    namespaces: bool = False
    rules: tuple[str, ...] = ()
    identity: Identity | None = None

    @classmethod
    def of(cls, args: dict[str, Any]) -> Confinement:
        """Of the command's values. Raises ConfigError."""
        identity = _identity(args["user"])
        made = cls(args["seccomp"], args["landlock"], args["namespaces"], args["landlock_rules"], identity)
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

        confine_calls(log=self.seccomp == "log")

    def _become(self, identity: Identity, config: VMConfig) -> None:
        from aiovmm.confine.identity import become
        from aiovmm.confine.reopened import check_reopened, reopened

        become(identity, _USER)
        check_reopened(reopened(config), identity, _USER)


def _identity(user: str | None) -> Identity | None:
    if user is None:
        return None
    from aiovmm.confine.identity import find

    return find(user, _USER)
