"""What a guest needs again while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiovmm import NetConfig, VMConfig
from aiovmm.config import MemoryConfig, PayloadConfig, VhostMode
from aiovmm.confine.reopened import reopened


@pytest.mark.parametrize(("mode", "sockets"), [(VhostMode.CLIENT, ["--net socket="]), (VhostMode.SERVER, [])])
def test_a_back_end_that_comes_to_us_is_not_connected_to_again(
    mode: VhostMode, sockets: list[str], tmp_path: Path
) -> None:
    net = NetConfig(vhost_user=True, socket=tmp_path / "net", vhost_mode=mode)
    payload = PayloadConfig(kernel=tmp_path / "kernel")
    config = VMConfig(payload=payload, memory=MemoryConfig(size=1 << 26, shared=True), nets=(net,))
    assert [option for option, _, _ in reopened(config)] == ["--kernel", *sockets]
