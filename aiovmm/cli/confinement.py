"""What `aiovmm run` gives up of its process's rights: --seccomp, --landlock, --landlock-rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiovmm.config import VMConfig
from aiovmm.runtime.dataclass import dataclass

__all__ = ["Confinement"]


@dataclass(frozen=True)
class Confinement:
    """`seccomp`: "true", "false" or "log"; `rules`: texts of --landlock-rules."""

    seccomp: str = "true"
    landlock: bool = False
    rules: tuple[str, ...] = ()

    @classmethod
    def of(cls, args: dict[str, Any]) -> Confinement:
        """Of the command's values. Raises ConfigError."""
        made = cls(args["seccomp"], args["landlock"], args["landlock_rules"])
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
        if not self.landlock:
            raise ConfigError("--landlock-rules", "there is nothing that it is a rule of", "say --landlock, too")

    def confine_paths(self, config: VMConfig, events_to: str | None) -> None:
        """Before there are threads, and before anything that a guest has is opened, or the file of events. Raises ConfigError,
        HostError."""
        if not self.landlock:
            return
        from aiovmm.config.options import parse_landlock_rule
        from aiovmm.confine.guests import confine_paths_to

        outputs = [] if events_to is None or events_to.isdecimal() else [Path(events_to)]
        confine_paths_to(config, [parse_landlock_rule(rule) for rule in self.rules], outputs, option="--landlock")

    def why_refused(self) -> str:
        """What to say of something that the system did not let this process do; empty if it is not confined."""
        words = []
        if self.landlock:
            words.append("--landlock-rules path=DIR,access=rw at its start lets it open what comes later")
        if self.seccomp == "true":
            words.append("--seccomp false lets it make interfaces and start helpers")
        return f"the guest's monitor is confined: {', and '.join(words)}" if words else ""

    def confine_calls(self) -> None:
        """Once all is there that the guest is run with, and before it runs. Raises HostError."""
        if self.seccomp == "false":
            return
        from aiovmm.confine.seccomp import confine_calls

        confine_calls(log=self.seccomp == "log")
