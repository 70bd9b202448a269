"""A kernel is examined once for all guests that have it, for as long as its file stays as it was."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovmm.boot import load_kernel
from aiovmm.boot import x86_64 as room
from aiovmm.errors import ImageError
from tests.boot.images import bzimage, elf

pytestmark = pytest.mark.skipif("platform.machine() != 'x86_64'", reason="kernels of the host")


def test_guests_that_have_the_same_kernel_share_what_is_known_of_it(
    put: Callable[[bytes], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(elf())
    first = load_kernel(path, cache=cache)
    with monkeypatch.context() as patch:
        patch.delattr(room, "load_kernel")
        assert load_kernel(path, cache=cache) is first
    put(elf() + b"more")
    second = load_kernel(path, cache=cache)
    assert second is not first
    assert second.source.size == first.source.size + 4


def test_one_that_is_gone_is_told_as_ever(put: Callable[[bytes], Path], cache: Path) -> None:
    path = put(elf())
    load_kernel(path, cache=cache)
    path.unlink()
    with pytest.raises(ImageError, match="no such kernel"):
        load_kernel(path, cache=cache)


def test_one_that_was_unpacked_is_unpacked_again_when_the_cache_was_emptied(
    put: Callable[[bytes], Path], cache: Path
) -> None:
    path = put(bzimage(gzip.compress(elf())))
    first = load_kernel(path, cache=cache)
    for kept in [file for file in cache.rglob("*") if file.is_file()]:
        kept.unlink()
    second = load_kernel(path, cache=cache)
    assert second is not first
    assert second.source.size == first.source.size
