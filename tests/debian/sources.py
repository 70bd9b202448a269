"""apt's sources of any Debian release, derived from those that this machine has: the same mirror, Debian's own keys."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROLLING = {"sid", "unstable", "testing"}  # they have one pocket alone
_POCKETS = ("", "updates", "security")
# Of debian-archive-keyring, which every Debian has; the second name is Debian 13's own.
_KEYRINGS = tuple(Path("/usr/share/keyrings/debian-archive-keyring").with_suffix(end) for end in (".gpg", ".pgp"))


# Of apt's settings: what it takes to reach the mirror.
_FETCHING = re.compile(r"Acquire::(https?|ftp|Retries|Check-|ForceIPv).*\".+\";$")


class NoSources(Exception):
    """Nothing is known of where Debian's archive is."""


@dataclass(frozen=True)
class Source:
    """One line of the machine's: `release` is like bookworm or bookworm-updates."""

    uri: str
    release: str
    component: str

    @property
    def suite(self) -> str:
        return self.release.partition("-")[0]

    @property
    def pocket(self) -> str:
        return self.release.partition("-")[2]


def sources(suite: str) -> list[str]:
    """sources.list lines, without their `deb`, of Debian's `suite`. NoSources if the machine's apt knows no Debian archive."""
    keyring = next((path for path in _KEYRINGS if path.exists()), None)
    # Who published an archive is known only once its lists were fetched; without, all that there is has to do.
    return derive(suite, _of_machine("Origin: Debian") or _of_machine(), keyring)


def apt_settings() -> list[str]:
    """This machine's settings of apt on how archives are reached, like proxies and certificates, for an apt that has its own."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return [line.rstrip(";") for line in dump.splitlines() if _FETCHING.match(line)]


def derive(suite: str, known: Sequence[Source], keyring: Path | None) -> list[str]:
    """The machine's own lines of `suite` as they are; each pocket that it lacks from where it has that of another release.

    The updates are in the main archive, the security updates may be elsewhere; what nobody knows a place of is left out.
    """
    lines = []
    for pocket in ("",) if suite in ROLLING else _POCKETS:
        own = [source for source in known if (source.suite, source.pocket) == (suite, pocket)]
        lines += [f"{source.uri} {source.release} {source.component}" for source in own]
        if not own and (uri := _place(pocket, known)):
            signed = f"[signed-by={keyring}] " if keyring else ""
            lines.append(f"{signed}{uri} {suite}{f'-{pocket}' if pocket else ''} main")
    if not any(f" {suite} " in line for line in lines):
        raise NoSources(
            f"this machine's apt sources have no Debian archive, so no {suite}; add one, then: apt-get update"
        )
    return lines


def _place(pocket: str, known: Sequence[Source]) -> str | None:
    fallbacks = {"updates": ("updates", ""), "": ("", "updates")}
    for wanted in fallbacks.get(pocket, (pocket,)):
        for source in known:
            if source.pocket == wanted and source.component == "main":
                return source.uri
    return None


def _of_machine(*filters: str) -> list[Source]:
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages", *filters]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoSources(f"apt does not tell its sources: {error}") from error
    rows = [line.split() for line in listing.splitlines()]
    return [Source(*row) for row in rows if len(row) == 3]
