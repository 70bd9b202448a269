"""A socket's name appears when the socket can be connected to, and stays whose it is."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovmm.errors import ConfigError, HostError
from aiovmm.runtime.unix_listener import PATH_LIMIT, SocketName, listen_at


def listen(path: Path) -> socket.socket:
    return listen_at(path, option="socket", operation="listen")


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as peer:
        return peer.connect_ex(os.fspath(path)) == 0


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Do something once while a socket is bound and does not listen yet."""

    def arrange(act: Callable[[], None]) -> None:
        chmod = os.chmod

        def first(*arguments: object, **options: object) -> None:
            monkeypatch.setattr(os, "chmod", chmod)
            act()
            chmod(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "chmod", first)

    return arrange


def test_the_name_is_not_there_before_somebody_listens(
    tmp_path: Path, between: Callable[[Callable[[], None]], None]
) -> None:
    path, seen = tmp_path / "console", list[bool]()
    between(lambda: seen.append(path.exists()))
    with listen(path):
        assert seen == [False]
        assert connects(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["console"]


def test_who_starts_at_the_same_time_takes_nothing_from_the_other(
    tmp_path: Path, between: Callable[[Callable[[], None]], None]
) -> None:
    path, other = tmp_path / "console", list[socket.socket]()
    between(lambda: other.append(listen(path)))
    with pytest.raises(HostError, match="another process listens there") as refused:
        listen(path)
    assert refused.value.errno == errno.EADDRINUSE
    assert connects(path)
    assert os.listdir(tmp_path) == ["console"]
    other[0].close()


def test_what_a_process_that_is_gone_has_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "console"
    listen(path).close()
    with listen(path):
        assert connects(path)
        with pytest.raises(HostError, match="another process listens there"):
            listen(path)


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is not a socket"):
        listen(path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("left", [0, 1, 5, 12])
def test_paths_up_to_the_limit(tmp_path: Path, left: int) -> None:
    folder = tmp_path / ("d" * (PATH_LIMIT - left - 3 - len(os.fsencode(tmp_path)) - 1))
    folder.mkdir()
    path = folder / "s"
    with listen(path.with_name("ss") if left == 0 else path):
        pass
    with pytest.raises(ConfigError, match="longer than"):
        listen(folder / ("s" * (left + 4)))


def test_a_file_system_without_links_has_sockets_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with listen(tmp_path / "console"):
        assert os.listdir(tmp_path) == ["console"]
        assert connects(tmp_path / "console")


def test_what_the_host_refuses_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="listen: No such file"):
        listen(tmp_path / "absent" / "console")
    assert os.listdir(tmp_path) == []


def test_a_name_goes_unless_it_is_another_s_by_now(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen_at(path, option="o", operation="listen"):
        name = SocketName(path)
    name.remove()
    assert not path.exists()
    with listen_at(path, option="o", operation="listen"):
        name.remove()
        assert path.exists(), "it was removed once"
        name = SocketName(path)
        path.rename(tmp_path / "moved")
        with listen_at(path, option="o", operation="listen"):
            name.remove()
            assert path.exists()
