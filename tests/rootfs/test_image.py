"""Images from directories, archives and OCI layouts, and the cache they are kept in."""

from __future__ import annotations

import asyncio
import errno
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from aiovmm import HostError, Image, ImageError
from aiovmm.architecture import host
from aiovmm.rootfs import Limits
from aiovmm.rootfs import directory as rootfs_directory
from aiovmm.rootfs.blocks import Blocks
from aiovmm.rootfs.cache import Cache, Held
from aiovmm.rootfs.directory import add_directory
from aiovmm.rootfs.kinds import kind_of
from aiovmm.rootfs.layer import LeftOut
from aiovmm.rootfs.streams import Readable
from aiovmm.rootfs.tree import Node, Tree
from tests.limits import HANGS
from tests.rootfs.conftest import archive, content, directory, file, needs_erofs, symlink

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "+gzip": gzip.compress,
    "+zstd": zstandard.ZstdCompressor().compress,
}


class Layout:
    """An OCI layout, written as the specification has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifests: list[dict[str, Any]] = []
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, kind: str, **more: Any) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data), **more}

    def add(self, *layers: bytes, packed: str = "+gzip", arch: str = "", **config: Any) -> dict[str, Any]:
        arch = arch or host().debian
        kind = f"application/vnd.oci.image.layer.v1.tar{packed}"
        blobs = [self.blob(_PACKERS[packed](layer), kind) for layer in layers]
        ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        document = {
            "architecture": arch,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": ids},
        }
        about = self.blob(json.dumps(document).encode(), "application/vnd.oci.image.config.v1+json")
        manifest = {"schemaVersion": 2, "config": about, "layers": blobs}
        kind = "application/vnd.oci.image.manifest.v1+json"
        found = self.blob(json.dumps(manifest).encode(), kind, platform={"os": "linux", "architecture": arch})
        self.manifests.append(found)
        self.write()
        return found

    def write(self) -> None:
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.manifests}))

    def damage(self, digest: str, change: Callable[[bytes], bytes]) -> None:
        path = self.path / "blobs/sha256" / digest.partition(":")[2]
        path.write_bytes(change(path.read_bytes()))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def extracted(path: Path, target: Path) -> dict[str, tuple[Any, ...]]:
    subprocess.run(["fsck.erofs", f"--extract={target}", "--preserve", path], check=True, capture_output=True)
    return content(target)


LAYERS = (archive(directory("d"), file("d/a", b"1"), file("d/b", b"2")), archive(file("d/.wh.a"), file("d/c", b"3")))


@needs_erofs
@needs_root
@pytest.mark.parametrize("packed", list(_PACKERS), ids=["tar", "gzip", "zstd"])
@pytest.mark.parametrize("as_archive", [False, True], ids=["directory", "archive"])
async def test_an_oci_layout(layout: Layout, tmp_path: Path, packed: str, as_archive: bool) -> None:
    layout.add(
        *LAYERS,
        packed=packed,
        Env=["PATH=/bin", "A=b=c"],
        Cmd=["-x"],
        Entrypoint=["/d/b"],
        User="7:8",
        WorkingDir="/d",
    )
    path = layout.path
    if as_archive:
        path = tmp_path / "layout.tar"
        with tarfile.open(path, "w") as tar:
            tar.add(layout.path, ".")
    image = await Image.from_oci(path, cache=tmp_path / "cache").build()
    found = extracted(image.path, tmp_path / "out")
    assert {name: entry[4] for name, entry in found.items()} == {"d": None, "d/b": b"2", "d/c": b"3"}
    assert image.config.env == {"PATH": "/bin", "A": "b=c"}
    assert (image.config.command, image.config.user, image.config.workdir) == (("/d/b", "-x"), "7:8", "/d")
    assert hashlib.sha256(image.path.read_bytes()).hexdigest() == image.digest == image.path.stem


@needs_erofs
@needs_root
async def test_a_working_directory_that_no_layer_has(layout: Layout, tmp_path: Path) -> None:
    """Builders only name it."""
    layer = archive(directory("d"), ("link", {"type": tarfile.SYMTYPE, "linkname": "d"}))
    layout.add(layer, WorkingDir="/link/../link/work/here/")
    image = await Image.from_oci(layout.path, cache=tmp_path / "cache").build()
    assert set(extracted(image.path, tmp_path / "out")) == {"d", "link", "d/work", "d/work/here"}
    layout.add(archive(file("d")), WorkingDir="/d/work")
    with pytest.raises(ImageError, match="not a directory"):
        await Image.from_oci(layout.path, tag=layout.manifests[-1]["digest"], cache=tmp_path / "cache").build()


@pytest.mark.parametrize("which", [0, 1], ids=["first layer", "last layer"])
async def test_a_layer_that_is_not_what_its_digest_says(layout: Layout, tmp_path: Path, which: int) -> None:
    manifest = layout.add(*LAYERS, packed="")
    said = json.loads((layout.path / "blobs/sha256" / manifest["digest"][7:]).read_text())
    layout.damage(said["layers"][which]["digest"], lambda data: data[:-1] + b"x")
    image = Image.from_oci(layout.path, cache=tmp_path / "cache")
    with pytest.raises(ImageError, match="not what its digest"):
        await image.build()
    assert list((tmp_path / "cache/making").iterdir()) == list((tmp_path / "cache").glob("content/*")) == []


async def test_an_unpacked_layer_that_is_not_what_the_configuration_says(layout: Layout, tmp_path: Path) -> None:
    layout.add(LAYERS[0])
    other = layout.add(LAYERS[1])
    text = (layout.path / "blobs/sha256" / other["digest"][7:]).read_bytes()
    first = json.loads((layout.path / "blobs/sha256" / layout.manifests[0]["digest"][7:]).read_text())
    said = json.loads(text)
    said["layers"] = first["layers"]
    layout.manifests = [layout.blob(json.dumps(said).encode(), "application/vnd.oci.image.manifest.v1+json")]
    layout.write()
    with pytest.raises(ImageError, match="not what the configuration says"):
        await Image.from_oci(layout.path, cache=tmp_path / "cache").build()


async def test_one_of_several_is_chosen_by_architecture_and_by_name(layout: Layout, tmp_path: Path) -> None:
    layout.add(LAYERS[0], arch="mips")
    layout.add(LAYERS[0], User="one")
    image = await Image.from_oci(layout.path, cache=tmp_path / "cache").build()
    assert image.config.user == "one"
    layout.add(LAYERS[0], User="two")
    for number, name in ((1, "first"), (2, "second")):
        layout.manifests[number]["annotations"] = {"org.opencontainers.image.ref.name": name}
    layout.write()
    with pytest.raises(ImageError, match=r"several images: say which by tag= .first, second."):
        await Image.from_oci(layout.path, cache=tmp_path / "cache").build()
    image = await Image.from_oci(layout.path, tag="second", cache=tmp_path / "cache").build()
    assert image.config.user == "two"
    with pytest.raises(ImageError, match="no image named 'third'; there are first, second"):
        await Image.from_oci(layout.path, tag="third", cache=tmp_path / "cache").build()


async def test_an_image_for_another_architecture_is_refused(layout: Layout, tmp_path: Path) -> None:
    layout.add(LAYERS[0], arch="mips")
    with pytest.raises(ImageError, match=r"nothing for linux/.*, but linux/mips"):
        await Image.from_oci(layout.path, cache=tmp_path / "cache").build()


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"{}", "no list 'manifests'"),
        (b'{"manifests": [1]}', "lacks a descriptor"),
        (b'{"manifests": [{"digest": "sha256:../../../etc/passwd", "size": 1}]}', "where a digest should be"),
        (b'{"manifests": [{"digest": "sha256:%s", "size": -1}]}' % (b"0" * 64), "size -1"),
        (b'{"manifests": [{"digest": "sha256:%s", "size": 1}]}' % (b"0" * 64), "lacks the blob"),
    ],
)
async def test_a_broken_index(layout: Layout, tmp_path: Path, index: bytes, reason: str) -> None:
    (layout.path / "index.json").write_bytes(index)
    with pytest.raises(ImageError, match=reason):
        await Image.from_oci(layout.path, cache=tmp_path / "cache").build()


@pytest.mark.parametrize(
    "config",
    [
        *(
            {"WorkingDir": "/\udc80"},
            {"WorkingDir": "/\ud800"},
            {"User": "\ud800"},
            {"Env": ["A=\ud800"]},
            {"Cmd": ["\0"]},
        ),
        *({"WorkingDir": "/" + "x" * 256}, {"WorkingDir": "/x" * 300}, {"WorkingDir": ["/"]}, {"Env": "A=b"}),
    ],
)
async def test_a_broken_configuration(layout: Layout, tmp_path: Path, config: dict[str, Any]) -> None:
    """JSON has texts that the system cannot be told."""
    layout.add(archive(file("a")), **config)
    with pytest.raises(ImageError, match=r"the configuration has|longer than 255|more than 256 directories"):
        await Image.from_oci(layout.path, cache=tmp_path / "cache").build()


async def test_a_blob_that_never_answers_is_refused(layout: Layout, tmp_path: Path) -> None:
    os.remove(layout.path / "oci-layout")
    (layout.path / "index.json").unlink(missing_ok=True)
    os.mkfifo(layout.path / "index.json")
    with pytest.raises(ImageError, match="is not a file"):
        await Image.from_oci(layout.path, cache=tmp_path / "cache").build()


@pytest.mark.parametrize("what", ["nothing", "text", "directory"])
async def test_what_is_no_layout(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x"
    if what == "text":
        path.write_text("no archive")
    elif what == "directory":
        path.mkdir()
    with pytest.raises(ImageError, match=r"No such file|cut short|no OCI layout"):
        await Image.from_oci(path, cache=tmp_path / "cache").build()


def test_what_never_answers_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ImageError, match="neither a file nor a directory"):
        Image.of(tmp_path / "x")


@pytest.mark.parametrize("size", [1 << 62, 1 << 64])
async def test_a_layout_with_a_size_that_no_file_has(tmp_path: Path, size: int) -> None:
    header = bytearray(archive(file("index.json"))[:512])
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x").write_bytes(header)
    with pytest.raises(ImageError, match=f"has a member of {size} bytes"):
        await Image.from_oci(tmp_path / "x", cache=tmp_path / "cache").build()


async def test_an_archive_of_more_files_than_a_layout_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names are the program's memory, before a process of its own makes an image of it."""
    monkeypatch.setattr("aiovmm.rootfs.layout._MOST_FILES", 10)
    (tmp_path / "x").write_bytes(archive(*(file(f"f{n}") for n in range(11))))
    with pytest.raises(ImageError, match="more than 10 files"):
        await Image.from_oci(tmp_path / "x", cache=tmp_path / "cache").build()


async def test_an_archive_that_never_answers(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ImageError, match="is not a file"):
        await Image.from_oci(tmp_path / "x", cache=tmp_path / "cache").build()


def test_what_an_archive_is_is_told_by_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first file may stand for terabytes."""
    path = tmp_path / "x.tar"
    path.write_bytes(archive(file("large", bytes(8 << 20)), file("etc")))
    taken = []

    class Counted:
        def __init__(self, source: Readable) -> None:
            self._source = source

        def read(self, size: int, /) -> bytes:
            taken.append(size)
            return self._source.read(size)

    monkeypatch.setattr("aiovmm.rootfs.kinds.expanded", Counted)
    assert kind_of(path) == "tar"
    assert sum(taken) < 1 << 20
    path.write_bytes(archive(file("manifest.json", b"[]"), file("blobs/sha256/x")))
    assert kind_of(path) == "oci"


# -- other sources


@needs_erofs
@needs_root
async def test_a_directory(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(b"x" * 10_000)
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "hard").hardlink_to(tree / "sub/file")
    os.chown(tree / "sub", 33, 44)
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    image = await Image.from_directory(tree, cache=tmp_path / "cache").build()
    found = extracted(image.path, tmp_path / "out")
    os.remove(tree / "null")
    assert {name: entry[:3] + entry[4:5] for name, entry in found.items()} == {
        name: entry[:3] + entry[4:5] for name, entry in content(tree).items()
    }
    assert image.devices == 1


async def test_a_directory_that_has_changed_is_another_image(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    image = Image.from_directory(tree, cache=tmp_path / "cache")
    digests = []
    for text in ("1", "2", "2"):
        (tree / "file").write_text(text)  # of the same size, and within one tick of the clock of many file systems
        os.utime(tree / "file", (1, 1))
        digests.append((await image.build()).digest)
    assert digests[0] != digests[1] == digests[2]


@pytest.mark.parametrize("replaced", ["a", "a/b", "a/b/f"])
def test_what_is_replaced_while_it_is_read_leads_nowhere_else(
    tmp_path: Path, replaced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a guest may that shares the directory: between the look at a name and what is opened by it."""
    for place, text in (("shared", b"its own"), ("outside", b"the host's")):
        (tmp_path / place / "a" / "b").mkdir(parents=True)
        (tmp_path / place / "a" / "b" / "f").write_bytes(text)
    (tmp_path / "out").touch()
    read = rootfs_directory._node

    def and_replaced(*arguments: Any) -> Node:
        path = next(argument for argument in arguments if isinstance(argument, bytes))
        if path.endswith(os.fsencode(replaced)):
            (tmp_path / "shared" / replaced).rename(tmp_path / "was")
            (tmp_path / "shared" / replaced).symlink_to(tmp_path / "outside" / replaced)
        return read(*arguments)

    monkeypatch.setattr(rootfs_directory, "_node", and_replaced)
    fd = os.open(tmp_path / "out", os.O_RDWR)
    blocks = Blocks(fd, 1, 1 << 20)
    tree = Tree(Limits(), blocks.free)
    with pytest.raises(ImageError, match=r"/shared/a.*: cannot be read: (Not a directory|Too many levels of symbolic)"):
        add_directory(tree, blocks, tmp_path / "shared", LeftOut())
    os.close(fd)
    assert tree.find(b"a/b/f") is None


@needs_root
def test_files_of_who_builds_are_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, owner in (("mine", 4242), ("other", 33), ("roots", 0)):
        (tmp_path / name).touch()
        os.chown(tmp_path / name, owner, owner)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    monkeypatch.setattr(os, "getgid", lambda: 4242)
    tree = Tree(Limits(), lambda _content: None)
    add_directory(tree, Blocks(-1, 1, 1 << 20), tmp_path, LeftOut())
    assert {name: (node.uid, node.gid) for name, node in tree.root.children.items()} == {
        b"mine": (0, 0),
        b"other": (33, 33),
        b"roots": (0, 0),
    }


@pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["plain", "gzip"])
async def test_a_tar_archive(tmp_path: Path, packed: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "root.tar"
    path.write_bytes(packed(archive(file("a", b"1"), file(".wh.b", b"2"))))
    image = await Image.from_tar(path, cache=tmp_path / "cache").build()
    assert image.path.read_bytes().count(b".wh.b") == 1  # a name like any other, outside layers


@pytest.mark.parametrize("cut", [1, 600, 1100, 1600])
async def test_a_tar_archive_that_is_cut_short(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "root.tar"
    path.write_bytes(archive(file("a", b"1" * 600))[:cut])
    with pytest.raises(ImageError, match="cut short"):
        await Image.from_tar(path, cache=tmp_path / "cache").build()


async def test_bombs_end_where_the_limits_are(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as out, tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("zeros")
        info.size = 64 << 20
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    image = Image.from_tar(path, cache=tmp_path / "cache", limits=Limits(size=63 << 20))
    with pytest.raises(ImageError, match=f"more than {63 << 20} bytes"):
        await image.build()


# -- the cache


async def test_many_builders_make_it_once(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.add(*LAYERS)
    begun: list[Cache] = []
    real = Cache.begin

    def begin(self: Cache) -> Held:
        begun.append(self)
        return real(self)

    monkeypatch.setattr(Cache, "begin", begin)
    images = await asyncio.gather(*(Image.from_oci(layout.path, cache=tmp_path / "cache").build() for _ in range(8)))
    assert len({image.digest for image in images}) == 1
    assert len(begun) == 1


def test_a_builder_that_is_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    """It is killed while its maker waits for the rest of the archive, and takes it with it."""
    pipe = tmp_path / "tree"
    pipe.mkdir()
    with open(pipe / "large", "wb") as out:
        out.truncate(3 << 30)  # takes a while
    cache = tmp_path / "cache"
    program = (
        "import asyncio, sys; from aiovmm import Image\n"
        "asyncio.run(Image.from_directory(sys.argv[1], cache=sys.argv[2]).build())"
    )
    builder = subprocess.Popen([sys.executable, "-c", program, pipe, cache])
    while not any(path.stat().st_size for path in cache.glob("making/*")):
        assert builder.poll() is None
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    (pipe / "large").unlink()
    (pipe / "small").write_text("x")

    async def again() -> None:
        image = Image.from_directory(pipe, cache=cache)
        async with asyncio.timeout(HANGS):
            await image.build()
            while list(cache.glob("making/*")):  # until the maker has seen that it is alone
                Cache(cache).prune()
                await asyncio.sleep(0.01)

    asyncio.run(again())


def test_what_cannot_be_remembered_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_names: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(HostError, match="keep an image: No space left"):
        Cache(tmp_path).remember("key", {"content": "0"})
    assert list((tmp_path / "sources").iterdir()) == []


async def test_cancelling_ends_the_maker(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "large").touch()
    os.truncate(tree / "large", 3 << 30)
    cache = tmp_path / "cache"
    task = asyncio.create_task(Image.from_directory(tree, cache=cache).build())
    while not any(path.stat().st_size for path in cache.glob("making/*")):  # noqa: ASYNC110 - another process does it
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(cache.glob("making/*")) == []


async def test_pruning_spares_what_is_used(tmp_path: Path) -> None:
    paths = []
    for name in "ab":
        paths.append(tmp_path / f"{name}.tar")
        paths[-1].write_bytes(archive(file(name)))
    cache = tmp_path / "cache"
    first = await Image.from_tar(paths[0], cache=cache).build()
    second = await Image.from_tar(paths[1], cache=cache).build()
    second.close()
    assert Cache(cache).prune(unused_for=60) == (0, 0)
    assert Cache(cache).prune()[0] == 1
    assert first.path.exists()
    assert not second.path.exists()
    again = await Image.from_tar(paths[1], cache=cache).build()
    assert again.digest == second.digest
    first.close()
    again.close()
    assert Cache(cache).prune()[0] == 2


async def test_a_link_in_the_archive_is_no_link_of_the_host(tmp_path: Path) -> None:
    path = tmp_path / "root.tar"
    path.write_bytes(archive(symlink("x", "/etc"), file("x/evil", b"x")))
    await Image.from_tar(path, cache=tmp_path / "cache").build()
    assert "evil" not in os.listdir("/etc")


@pytest.mark.parametrize("step", ["try_lock", "begin"])
async def test_cancelled_before_it_hears_of_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The thread has it already; nobody else would ever have it."""
    path, cache = tmp_path / "a.tar", tmp_path / "cache"
    path.write_bytes(archive(file("a")))
    loop, real = asyncio.get_running_loop(), getattr(Cache, step)

    def cancelled(self: Cache, *args: str) -> object:
        found = real(self, *args)
        loop.call_soon_threadsafe(task.cancel)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Cache, step, cancelled)
        task = asyncio.create_task(Image.from_tar(path, cache=cache).build())
        with pytest.raises(asyncio.CancelledError):
            await task
    async with asyncio.timeout(HANGS):
        assert (await Image.from_tar(path, cache=cache).build()).digest
    assert list(cache.glob("making/*")) == []


def test_a_layout_that_was_left_is_swept_away(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (tmp_path / "layouts/left/blobs").mkdir(parents=True)
    used = cache.begin_layout()
    assert list((tmp_path / "layouts").iterdir()) == [used.path]
    Cache(tmp_path).prune()
    assert used.path.exists()
    used.close()
    assert not used.path.exists()


def test_where_less_memory_is_allowed_an_image_is_made_with_less(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").write_bytes(b"content")
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from aiovmm import Image\n"
        "built = asyncio.run(Image.from_directory(sys.argv[1], cache=Path(sys.argv[2])).build())\n"
        "print(built.path.stat().st_size)\n"
    )
    limited = ["prlimit", f"--as={3 << 30}", sys.executable, "-c", program]
    done = subprocess.run([*limited, tmp_path / "root", tmp_path / "cache"], capture_output=True, text=True, timeout=60)
    assert int(done.stdout) > 0, done.stderr
