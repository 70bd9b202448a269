"""What a pool's workers give up of their own rights, as a program says it and as it goes to them."""

from __future__ import annotations

import enum

from aiovmm.config.landlock import LandlockRuleConfig
from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["Confinement", "Seccomp"]


class Seccomp(enum.Enum):
    """What becomes of system calls that no guest is served by."""

    REFUSED = "true"
    LOGGED = "log"
    ALLOWED = "false"


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """`Pool(confinement=...)`: what a guest that takes over its worker may do there. With `landlock` the worker opens what the
    pool's configuration names, and what `rules` add; without it, whatever this user may. With `namespaces` nothing else is there:
    it has mounts, and, if it is not root, a user namespace of its own. `user` (NAME, UID or UID:GID) of a
    program that is root: whom each worker becomes when it has /dev/kvm and nothing else, so images and directories have to be
    that user's to open."""

    seccomp: Seccomp = Seccomp.REFUSED
    landlock: bool = False
    namespaces: bool = False
    rules: tuple[LandlockRuleConfig, ...] = ()
    user: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.seccomp, Seccomp):
            raise ConfigError("confinement.seccomp", f"{self.seccomp!r} is none", "Seccomp.REFUSED, LOGGED or ALLOWED")
        if self.rules and not (self.landlock or self.namespaces):
            hint = "say landlock=True or namespaces=True, too"
            raise ConfigError("confinement.rules", "there is nothing that they are rules of", hint)
        if self.user is not None:
            from aiovmm.confine.identity import find

            find(self.user, "confinement.user")
