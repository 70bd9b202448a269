"""Where another release's packages come from, on machines with all kinds of apt sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.debian.sources import NoSources, Source, apt_settings, derive

KEYS = Path("/keys.gpg")
MIRROR, SECURITY = "http://mirror/debian/", "http://mirror/debian-security/"
TRIXIE = [
    Source(MIRROR, "trixie", "main"),
    Source(MIRROR, "trixie-updates", "main"),
    Source(SECURITY, "trixie-security", "main"),
]


def test_the_machines_own_release_is_as_the_machine_has_it() -> None:
    own = [*TRIXIE, Source(MIRROR, "trixie", "contrib")]
    assert derive("trixie", own, KEYS) == [
        f"{MIRROR} trixie main",
        f"{MIRROR} trixie contrib",
        f"{MIRROR} trixie-updates main",
        f"{SECURITY} trixie-security main",
    ]


def test_another_release_is_on_the_same_mirror_and_signed_by_debian() -> None:
    assert derive("bookworm", TRIXIE, KEYS) == [
        f"[signed-by=/keys.gpg] {MIRROR} bookworm main",
        f"[signed-by=/keys.gpg] {MIRROR} bookworm-updates main",
        f"[signed-by=/keys.gpg] {SECURITY} bookworm-security main",
    ]


def test_one_that_rolls_on_has_no_updates_beside_it() -> None:
    assert derive("sid", TRIXIE, None) == [f"{MIRROR} sid main"]


def test_pockets_that_the_machine_lacks_of_its_own_release_are_added() -> None:
    """Debian's newer kernels for a release are in its updates and its security updates alone."""
    bare = [Source(MIRROR, "bookworm", "main"), TRIXIE[2]]
    assert derive("bookworm", bare, KEYS) == [
        f"{MIRROR} bookworm main",
        f"[signed-by=/keys.gpg] {MIRROR} bookworm-updates main",
        f"[signed-by=/keys.gpg] {SECURITY} bookworm-security main",
    ]


def test_security_updates_that_nobody_knows_a_place_of_are_left_out() -> None:
    lines = derive("bookworm", [Source(MIRROR, "sid", "main")], None)
    assert lines == [f"{MIRROR} bookworm main", f"{MIRROR} bookworm-updates main"]


@pytest.mark.parametrize("known", [[], [TRIXIE[2]], [Source("http://other/", "stable", "tools")]])
def test_without_an_archive_of_debians_it_says_what_to_do(known: list[Source]) -> None:
    with pytest.raises(NoSources, match="no bookworm; add one, then: apt-get update"):
        derive("bookworm", known, KEYS)


def test_what_reaching_the_mirror_takes_is_told_to_another_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apt.conf").write_text(
        'Acquire::http::Proxy "http://proxy:3142/"; Acquire::Check-Valid-Until "false"; APT::Install-Recommends "0";'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    found = apt_settings()
    assert {'Acquire::http::Proxy "http://proxy:3142/"', 'Acquire::Check-Valid-Until "false"'} <= set(found)
    assert not [one for one in found if not one.startswith("Acquire::")]
