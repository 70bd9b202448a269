"""Pytest and the nested host.

A test marked `kvmhost` runs in a nested host. Where pytest already runs in one it is a test like any other; elsewhere all
such tests are handed, at the first, to one pytest in the host, and each is reported here as it ends there.
`@pytest.mark.kvmhost(profile="vfio")` chooses another profile's host, `arch="aarch64"` another architecture's, `cpu="cortex-a72"`
another processor of it; of several marks, as on a test and on its parameters, each has its say.

The fixtures `kvmhost` and `kvmhost_aarch64` are for the other kind of test, which stays outside and gives the host commands.

Where the machine lacks what the host needs, both are skipped and say what to install; with AIOVMM_REQUIRE_GROUNDS=1,
as on CI, they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .again import Again, lost
from .arch import AARCH64, X86_64, Arch
from .delegate import RemoteSession, keep_ahead
from .host import Host
from .settings import Profile, profile_named
from .tools import missing_tools, needed_tools

INSIDE = "AIOVMM_KVMHOST" in os.environ
_REQUIRED = os.environ.get("AIOVMM_REQUIRE_GROUNDS", "") not in ("", "0")
_THOROUGH = os.environ.get("AIOVMM_THOROUGH", "") not in ("", "0")
_SESSIONS = pytest.StashKey[dict[str, RemoteSession]]()


def lacking(arch: Arch = X86_64) -> str:
    """Why there can be no nested host of `arch` here; empty if there can."""
    missing = missing_tools(needed_tools(arch))
    if not missing:
        return ""
    packages = " ".join(sorted(set(missing.values())))
    return f"no nested KVM host of {arch.name}: {', '.join(sorted(missing))} not installed (apt-get install {packages})"


def _require(arch: Arch) -> None:
    """Skips, or where grounds are required fails, a test that would start a nested host where there can be none."""
    if INSIDE:
        pytest.skip("this test gives commands to a nested host, and this is the nested host")
    reason = lacking(arch)
    if reason:
        (pytest.fail if _REQUIRED else pytest.skip)(reason)


@pytest.fixture(scope="session")
def kvmhost_possible() -> None:
    _require(X86_64)


@pytest.fixture(scope="session")
def kvmhost_aarch64_possible() -> None:
    _require(AARCH64)


@pytest.fixture(scope="session")
def kvmhost_unlocked(kvmhost_possible: None) -> Host:
    """A warm nested host that is locked only while a method of it works: for tests that run other clients of it."""
    host = Host()
    host.ensure_started()
    return host


@pytest.fixture
def kvmhost(kvmhost_unlocked: Host) -> Iterator[Host]:
    """A warm nested host with the project's present code, this test's alone while it runs."""
    with kvmhost_unlocked.exclusive():
        yield kvmhost_unlocked


@pytest.fixture
def kvmhost_aarch64(kvmhost_aarch64_possible: None) -> Iterator[Host]:
    """The same, of arm64."""
    host = Host(arch=AARCH64.name)
    with host.exclusive():
        yield host


_CLIENTS = {"kvmhost_possible": X86_64, "kvmhost_aarch64_possible": AARCH64}


def _profile(item: pytest.Item) -> Profile | None:
    """The profile whose host `item` is to run in; None for a test that runs here."""
    markers = [] if INSIDE else list(item.iter_markers("kvmhost"))
    if not markers:
        return None
    wanted = {key: value for marker in reversed(markers) for key, value in marker.kwargs.items()}  # the closest counts
    return profile_named(wanted.get("profile", "default"), wanted.get("arch", X86_64.name), wanted.get("cpu"))


def _host_order(item: pytest.Item) -> tuple[str, bool]:
    """All that is done here first, then what each host runs: beside other work everything takes several times as long there. What
    only gives a host commands waits until it has run that."""
    profile = _profile(item)
    clients = [arch for fixture, arch in _CLIENTS.items() if fixture in getattr(item, "fixturenames", ())]
    if profile is None and clients:
        return profile_named("default", clients[0].name).name, True
    return "" if profile is None else profile.name, False


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Each host's as a whole: sessions in two hosts at once would each take the other's processors.
    items.sort(key=_host_order)  # stable
    for item in items:
        if _CLIENTS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker("kvmhost_client")
    if _REQUIRED:
        return
    reasons: dict[str, str] = {}
    for item in items:
        profile = _profile(item)
        if profile is None:
            continue
        arch = profile.arch
        if arch.name not in reasons:
            reasons[arch.name] = lacking(arch)
        if reasons[arch.name]:
            item.add_marker(pytest.mark.skip(reason=reasons[arch.name]))


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item) -> bool | None:
    """A test's time limit holds where it runs: here it would count the wait for the host, and end the whole session."""
    return True if _profile(item) else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    profile = _profile(item)
    if profile is None or item.get_closest_marker("skip"):
        return None
    sessions = item.config.stash.setdefault(_SESSIONS, {})
    if profile.name not in sessions:
        sessions[profile.name] = _session(item, profile)
        if _THOROUGH and len(sessions) == 1:
            sessions |= _sessions_ahead(item, profile.arch)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in sessions[profile.name].reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    _tear_down_for(item, nextitem)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _session(item: pytest.Item, profile: Profile) -> RemoteSession:
    """The one that runs all of this pytest's tests for hosts of `profile`."""
    return RemoteSession(item.config, profile, [one.nodeid for one in item.session.items if _profile(one) == profile])


def _sessions_ahead(item: pytest.Item, but: Arch) -> dict[str, RemoteSession]:
    """Those of the other architectures, begun beside the first: a host that boots guests has use for one processor, mostly, and
    the hosts of all architectures one after the other take hours."""
    profiles = {
        profile.name: profile for one in item.session.items if (profile := _profile(one)) and profile.arch != but
    }
    sessions = {name: _session(item, profile) for name, profile in profiles.items()}
    keep_ahead(list(sessions.values()))
    return sessions


def _tear_down_for(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the packages and modules that the last test run here shares with `item` but not with the next one.

    Pytest left them set up, for it took `item` for the next user; nothing else would end them, and the next test's set-up
    would fail on finding them.
    """
    call = pytest.CallInfo.from_call(lambda: item.session._setupstate.teardown_exact(nextitem), when="teardown")
    if call.excinfo is not None:
        item.ihook.pytest_runtest_logreport(report=pytest.TestReport.from_item_and_call(item, call))


def pytest_configure(config: pytest.Config) -> None:
    if INSIDE:
        config.pluginmanager.register(Again())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [one for some in terminalreporter.stats.values() for one in some if isinstance(one, pytest.TestReport)]
    for nodeid, text in lost(reports).items():
        terminalreporter.section(f"run again, for the nested host's emulator had lost its guest: {nodeid}")
        terminalreporter.write_line(text)


def pytest_unconfigure(config: pytest.Config) -> None:
    for session in config.stash.get(_SESSIONS, {}).values():
        session.close()
