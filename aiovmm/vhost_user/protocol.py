"""Numbers of the vhost-user protocol (QEMU, docs/interop/vhost-user.rst, protocol version 1).

The front end is the monitor; the back end is the process that serves the queues. Requests go from the front end over the
main socket, and from the back end over a second one (BACKEND_REQ).
"""

from __future__ import annotations

import enum

__all__ = [
    "CONFIG_SIZE",
    "F_PROTOCOL_FEATURES",
    "MAX_FDS",
    "MAX_PAYLOAD",
    "MAX_REGIONS",
    "NO_FD",
    "PROTOCOL_VERSION",
    "BackendRequest",
    "Flag",
    "FrontendRequest",
    "ProtocolFeature",
]

PROTOCOL_VERSION = 1
F_PROTOCOL_FEATURES = 1 << 30
"""VHOST_USER_F_PROTOCOL_FEATURES among the feature bits: never the driver's business."""

MAX_REGIONS = 8
"""Memory regions in one table, each with its fd."""

MAX_FDS = MAX_REGIONS
"""File descriptors with one message: caps what a peer can make us hold."""

CONFIG_SIZE = 256
"""VHOST_USER_MAX_CONFIG_SIZE: bytes of configuration space in one message."""

MAX_PAYLOAD = 512
"""Bytes after the header: above the largest message there is (a configuration access), so that a peer's size field
makes us buffer no more."""

NO_FD = 1 << 8
"""In SET_VRING_KICK, CALL and ERR: no eventfd comes with it; bits 0-7 are the ring's index."""


class Flag(enum.IntFlag):
    """The header's flags."""

    VERSION = 0x3
    REPLY = 0x4
    NEED_REPLY = 0x8


class FrontendRequest(enum.IntEnum):
    """What a front end sends."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(enum.IntEnum):
    """What a back end sends on its own channel."""

    CONFIG_CHANGE = 2


class ProtocolFeature(enum.IntFlag):
    """Protocol feature bits: those that aiovmm knows, on either side."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    STATUS = 1 << 16
