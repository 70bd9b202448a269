"""uvloop alone: what a driver may do is the same whichever loop turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """See the module."""
    return {"uvloop": uvloop.new_event_loop}
