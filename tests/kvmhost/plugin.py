"""Pytest and the nested host.

A test marked `kvmhost` runs in a nested host. Where pytest already runs in one it is a test like any other; elsewhere all
such tests are handed, at the first, to one pytest in the host, and each is reported here as it ends there.
`@pytest.mark.kvmhost(profile="vfio")` chooses another profile's host.

The fixture `kvmhost` is for the other kind of test, which stays outside and gives the host commands.

Where the machine lacks what the host needs, both are skipped and say what to install; with AIOVMM_REQUIRE_GROUNDS=1,
as on CI, they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .delegate import RemoteSession
from .host import Host
from .image import missing_tools, needed_tools

INSIDE = "AIOVMM_KVMHOST" in os.environ
_REQUIRED = os.environ.get("AIOVMM_REQUIRE_GROUNDS", "") not in ("", "0")
_SESSIONS = pytest.StashKey[dict[str, RemoteSession]]()


def lacking() -> str:
    """Why there can be no nested host here; empty if there can."""
    missing = missing_tools(needed_tools())
    if not missing:
        return ""
    packages = " ".join(sorted(set(missing.values())))
    return f"no nested KVM host: {', '.join(sorted(missing))} not installed (apt-get install {packages})"


@pytest.fixture(scope="session")
def kvmhost_possible() -> None:
    """Skips, or where grounds are required fails, a test that would start a nested host where there can be none."""
    if INSIDE:
        pytest.skip("this test gives commands to a nested host, and this is the nested host")
    reason = lacking()
    if reason:
        (pytest.fail if _REQUIRED else pytest.skip)(reason)


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


def _profile(item: pytest.Item) -> str:
    """The profile whose host `item` is to run in; empty for a test that runs here."""
    marker = None if INSIDE else item.get_closest_marker("kvmhost")
    return str(marker.kwargs.get("profile", "default")) if marker else ""


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kvmhost_possible" in getattr(item, "fixturenames", ()):
            item.add_marker("kvmhost_client")
    reason = lacking() if any(_profile(item) for item in items) else ""
    if reason and not _REQUIRED:
        for item in items:
            if _profile(item):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item) -> bool | None:
    """A test's time limit holds where it runs: here it would count the wait for the host, and end the whole session."""
    return True if _profile(item) else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    profile = _profile(item)
    if not profile or item.get_closest_marker("skip"):
        return None
    sessions = item.config.stash.setdefault(_SESSIONS, {})
    if profile not in sessions:
        nodeids = [one.nodeid for one in item.session.items if _profile(one) == profile]
        sessions[profile] = RemoteSession(item.config, profile, nodeids)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in sessions[profile].reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    _tear_down_for(item, nextitem)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _tear_down_for(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the packages and modules that the last test run here shares with `item` but not with the next one.

    Pytest left them set up, for it took `item` for the next user; nothing else would end them, and the next test's set-up
    would fail on finding them.
    """
    call = pytest.CallInfo.from_call(lambda: item.session._setupstate.teardown_exact(nextitem), when="teardown")
    if call.excinfo is not None:
        item.ihook.pytest_runtest_logreport(report=pytest.TestReport.from_item_and_call(item, call))


def pytest_unconfigure(config: pytest.Config) -> None:
    for session in config.stash.get(_SESSIONS, {}).values():
        session.close()
