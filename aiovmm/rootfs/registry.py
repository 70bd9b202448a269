"""An image from a registry, copied by skopeo into an OCI layout: it knows registries, their tokens, and users' credentials.

Source: skopeo-copy(1), containers-auth.json(5).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import ENOENT
from pathlib import Path

from aiovmm.errors import HostError, ImageError, UsageError, not_started
from aiovmm.runtime.child import Child
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.tasks import in_thread

__all__ = ["Reference", "copy_from_registry"]

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:/@\[\]-]*", re.ASCII)
_LAST_WORDS = 16 << 10
_LOOK = 0.2  # seconds between two looks at how much has come: a registry may send without end
_BESIDES = 16 << 20  # bytes of documents, and of what does not get smaller by being packed
_POLICIES = ("/etc/containers/policy.json", "~/.config/containers/policy.json")


@dataclass(frozen=True)
class Reference:
    """`name` as docker has it: HOST[:PORT]/PATH[:TAG][@DIGEST], of Docker's own registry if there is no host. With `username` and
    `password` (or a token in its place) it is asked so, else with what skopeo finds of this user, or anonymously. `tls_verify`
    False takes plain HTTP, too."""

    name: str
    username: str = ""
    password: str = ""
    tls_verify: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise UsageError(f"{self.name!r} is no name of an image: say HOST/PATH:TAG")
        if not isinstance(self.username, str) or not isinstance(self.password, str):
            raise UsageError("a username and a password, or token, are text")
        if bool(self.username) != bool(self.password):
            raise UsageError("a username and a password go together")
        if ":" in self.username:
            raise UsageError("a username has no colon: the password comes after it (RFC 7617, 2)")
        try:
            self.credentials()
        except UnicodeEncodeError:
            raise UsageError("a username and a password, or token, are text, without surrogates of their own") from None

    def credentials(self) -> bytes:
        """Both, as registries are told (RFC 7617): in UTF-8, or the bytes that the command line was given."""
        return f"{self.username}:{self.password}".encode(errors="surrogateescape")

    def __repr__(self) -> str:
        """Without the password."""
        return f"Reference({self.name!r}{f', username={self.username!r}' if self.username else ''})"

    @property
    def source(self) -> str:
        """What skopeo is asked for: by a digest alone where there is one. A tag says nothing then, and skopeo takes none."""
        place, at, digest = self.name.partition("@")
        path, _, tag = place.rpartition(":")
        return f"{path}@{digest}" if at and path and "/" not in tag else self.name

    @property
    def host(self) -> str:
        """The registry's, as credentials are kept by."""
        first, slash, _ = self.name.partition("/")
        return first if slash and (":" in first or "." in first or first == "localhost") else "docker.io"


async def copy_from_registry(reference: Reference, architecture: str, layout: Path, most: int) -> None:
    """Copy the image for `architecture` (Go's name), which has `most` bytes unpacked, into the new OCI layout `layout`. Raises
    ImageError, HostError."""
    command = await in_thread("registry", _skopeo)
    command += ["--override-os", "linux", "--override-arch", architecture]
    with _credentials(reference) as fds, _folder(layout.parent) as folder:
        command += ["copy", "--quiet", *(f"--src-authfile=/proc/self/fd/{fd}" for fd in fds)]
        command += [f"--src-tls-verify={str(reference.tls_verify).lower()}"]
        await _run(
            [*command, f"docker://{reference.source}", f"oci:/proc/self/fd/{folder}/{layout.name}:latest"],
            (*fds, folder),
            reference.name,
            layout,
            most + most // 16 + _BESIDES,
        )


def _skopeo() -> list[str]:
    """In a thread: homes are on servers."""
    program = shutil.which("skopeo")
    if program is None:
        raise HostError("copy an image from a registry", ENOENT, "apt-get install skopeo", "skopeo")
    return [*_dying(), program, *_policy()]


def _dying() -> list[str]:
    """With this process, which alone knows how much may come."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _policy() -> list[str]:
    """What signatures are wanted is the administrator's or the user's to say; where nobody does, none are."""
    return [] if any(os.path.exists(os.path.expanduser(path)) for path in _POLICIES) else ["--insecure-policy"]


@contextmanager
def _credentials(reference: Reference) -> Iterator[tuple[int, ...]]:
    """In a file without a name: nobody is left one by who is killed, and others cannot see it, as they can arguments."""
    if not reference.username:
        yield ()
        return
    both = base64.b64encode(reference.credentials()).decode()
    with open(os.memfd_create("auth.json", os.MFD_CLOEXEC), "w") as out:
        json.dump({"auths": {reference.host: {"auth": both}}}, out)
        out.flush()
        yield (out.fileno(),)


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    """By a descriptor: for skopeo a path ends at the first colon."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


async def _run(command: Sequence[str], fds: Sequence[int], name: str, layout: Path, most: int) -> None:
    try:
        skopeo = Child(command, pass_fds=fds, last_words=_LAST_WORDS)
    except OSError as exc:
        raise not_started("start skopeo", exc, command[0]) from exc
    try:
        code = await _ended(skopeo, name, layout, most)
        said = skopeo.said(2, _LAST_WORDS)
    finally:
        await skopeo.aclose()
    if code:
        words = said.decode(errors="replace").strip().splitlines()
        reason = re.search(r'msg="(.*)"', words[-1]) if words else None
        text = reason[1].replace('\\"', '"') if reason else (words or ["it said nothing"])[-1]
        raise ImageError(name, f"cannot be copied: {text}", "`skopeo inspect docker://NAME` tells more")


async def _ended(skopeo: Child, name: str, layout: Path, most: int) -> int:
    """Its exit code. Raises ImageError as soon as there are more than `most` bytes."""
    waiting = asyncio.ensure_future(skopeo.wait())
    try:
        while not (await asyncio.wait([waiting], timeout=_LOOK))[0]:
            if await in_thread("registry", _size, layout) > most:
                hint = "Image.from_docker_registry(limits=Limits(size=...)) says what that is"
                raise ImageError(name, "cannot be copied: it is larger than it may be", hint)
        return waiting.result()
    finally:
        waiting.cancel()


def _size(layout: Path) -> int:
    """Bytes of all files."""
    size = 0
    for folder, _, names in os.walk(layout):
        for name in names:
            with suppress(OSError):  # it has another name now
                size += os.lstat(os.path.join(folder, name)).st_size
    return size
