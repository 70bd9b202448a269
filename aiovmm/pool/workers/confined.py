"""A worker gives up rights, before it does anything else: what it is told of it, and what its guests cannot have afterwards."""

from __future__ import annotations

from pathlib import Path

from aiovmm.config import PlacedConfig, VMConfig
from aiovmm.config.landlock import LandlockRuleConfig
from aiovmm.confine.confinement import Confinement, Seccomp
from aiovmm.confine.guests import check_programs, confine_paths_to, enter_namespaces_of, families_of
from aiovmm.confine.identity import become, find, keep_from_gaining
from aiovmm.confine.limits import limit_resources
from aiovmm.confine.seccomp import confine_calls
from aiovmm.devices.virtio.blk.rings import keep
from aiovmm.errors import ConfigError
from aiovmm.kvm import Kvm
from aiovmm.machine.hotplug.configured import with_device
from aiovmm.runtime.plain import Fields, State
from aiovmm.snapshot.configuration import from_state, to_state

__all__ = ["Confined", "to_state_of"]

_OPTION = "confinement"
_GUESTS = 64
"""Of a worker, whose disks' requests go by io_uring; those of more go by threads."""


def to_state_of(config: VMConfig, confinement: Confinement) -> State:
    """What a worker is told first."""
    rules = [{"path": str(rule.path), "access": rule.access} for rule in confinement.rules]
    of_paths = {"landlock": confinement.landlock, "namespaces": confinement.namespaces, "rules": rules}
    return {
        "config": to_state(config),
        "seccomp": confinement.seccomp.value,
        "user": confinement.user or "",
        **of_paths,
    }


class Confined:
    """As `fields` say (to_state_of). Raises SnapshotError for what is not; nothing is given up yet."""

    def __init__(self, fields: Fields) -> None:
        self._config = from_state(fields.state("config"))
        self._seccomp = Seccomp(fields.text("seccomp", among=[each.value for each in Seccomp]))
        self._user = fields.text("user")
        self._landlock = fields.flag("landlock")
        self._namespaces = fields.flag("namespaces")
        self._rules = [
            LandlockRuleConfig(path=Path(rule.text("path")), access=rule.text("access"))
            for rule in fields.several("rules")
        ]
        self._families = families_of(self._config)

    def enter(self) -> None:
        """For good. Raises ConfigError for guests that could not be made then, HostError."""
        if self._seccomp is Seccomp.REFUSED:
            check_programs(self._config, f"{_OPTION}.seccomp")
        identity = find(self._user, f"{_OPTION}.user") if self._user else None
        if self._namespaces:
            enter_namespaces_of(self._config, self._rules, option=f"{_OPTION}.namespaces")
        if self._landlock:
            confine_paths_to(self._config, self._rules, option=f"{_OPTION}.landlock")
        if identity is not None:
            Kvm.hold()  # until this process ends
            keep_from_gaining()
            become(identity, f"{_OPTION}.user")
        if identity is not None or self._seccomp is not Seccomp.ALLOWED:
            limit_resources()
        if self._seccomp is not Seccomp.ALLOWED:
            if self._config.disks:
                keep(self._config.disks * _GUESTS)
            confine_calls(log=self._seccomp is Seccomp.LOGGED, families=self._families)

    def check(self, config: VMConfig, device: PlacedConfig) -> None:
        """Whether one more can be had here: a guest's is not to fail half-way. Raises ConfigError. May block for a moment."""
        if self._seccomp is not Seccomp.REFUSED:
            return
        config = with_device(config, device)
        check_programs(config, f"{_OPTION}.seccomp")
        if not set(families_of(config)) <= set(self._families):
            reason = "this pool's workers have given up what a TAP is set up with, for none of its guests had one"
            raise ConfigError("net", reason, "have one in the pool's configuration, or Seccomp.ALLOWED")
