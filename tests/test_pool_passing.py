"""Sockets that go to a worker: each with the request that it belongs to, and none is lost."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from aiovmm.errors import HostError, PeerError
from aiovmm.pool.workers.passing import accept, hand_over, pair
from tests.open_files import descriptors


def test_a_socket_arrives_with_its_request() -> None:
    before = descriptors()
    ours, theirs = pair()
    one, other = socket.socketpair()
    with ours, theirs, one:
        for id_ in (1, 2, 1 << 40):
            hand_over(ours, id_, other)
        other.close()
        taken = [accept(theirs, id_) for id_ in (1, 2, 1 << 40)]
        taken[1].sendall(b"x")
        assert one.recv(1) == b"x"
        assert not any(os.get_inheritable(sock.fileno()) for sock in taken)
        for sock in taken:
            sock.close()
        assert one.recv(1) == b""
    assert descriptors() <= before


@pytest.mark.parametrize("sent", [(2, 1), (1, 0), (1, 2), (1, 9), None], ids=str)
def test_what_belongs_to_another_request_is_closed(sent: tuple[int, int] | None) -> None:
    before = descriptors()
    ours, theirs = pair()
    one, other = socket.socketpair()
    with ours, theirs, one:
        if sent is not None:
            id_, count = sent
            socket.send_fds(ours, [struct.pack("<Q", id_)], [other.fileno()] * count)
        other.close()
        with pytest.raises(PeerError, match="request 1 came"):
            accept(theirs, 1)
        if sent is not None and sent[1]:
            assert one.recv(1) == b""
    assert descriptors() <= before


def test_a_worker_that_takes_none_is_no_end_of_the_pool() -> None:
    ours, theirs = pair()
    one, other = socket.socketpair()
    with ours, theirs, one, other:

        def flood() -> None:
            for id_ in range(100_000):
                hand_over(ours, id_, other)

        with pytest.raises(HostError, match="give a socket to a worker"):
            flood()
        accept(theirs, 0).close()
        with pytest.raises(HostError):
            flood()
