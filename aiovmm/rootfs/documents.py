"""The JSON documents of an OCI image, checked once: indexes, manifests, configurations. Pure.

Source: OCI image specification 1.1: descriptor.md, image-index.md, manifest.md, config.md.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, TypeGuard

__all__ = [
    "Configuration",
    "Descriptor",
    "DocumentError",
    "parse_configuration",
    "parse_manifest",
    "select_manifest",
    "select_saved",
]

_DIGEST = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})", re.ASCII)
_INDEX = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_LAYER = re.compile(
    r"application/vnd\.(oci\.image\.layer\.v1\.tar|docker\.image\.rootfs\.diff\.tar)([.+](gzip|zstd))?", re.ASCII
)
_LARGEST = 1 << 63
_MOST_LAYERS = 1000
_MOST_PARTS = 100_000  # lists, objects, values and escapes of a document; of a thousand layers there are 20,000
_NAME = "org.opencontainers.image.ref.name"


class DocumentError(Exception):
    """A document is not what the specification has; the message says what is wrong."""


@dataclass(frozen=True)
class Descriptor:
    """What a document refers to: `digest` like sha256:..., and `size` in bytes."""

    kind: str
    digest: str
    size: int
    platform: tuple[str, str] | None = None  # operating system and architecture, as Go has them
    tag: str = ""

    @property
    def is_index(self) -> bool:
        """Whether it lists images, of which one is for this machine."""
        return self.kind in _INDEX


@dataclass(frozen=True)
class Configuration:
    """What an image says of how it is run: environment, command, user, working directory; and its layers' digests, unpacked."""

    env: dict[str, str] = field(default_factory=dict)
    cmd: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    architecture: str = ""
    diff_ids: tuple[str, ...] = ()


def select_manifest(data: bytes, architecture: str, tag: str | None) -> Descriptor:
    """What an index has for `architecture` (Go's name) and, if it is given, under the name `tag`."""
    found = [_descriptor(item) for item in _list(_document(data), "manifests")]
    tags = sorted({item.tag for item in found if item.tag})
    if tag is not None:
        found = [item for item in found if item.tag == tag or item.digest == tag]
        if not found:
            raise DocumentError(f"has no image named {tag!r}" + (f"; there are {', '.join(tags)}" if tags else ""))
    fitting = [item for item in found if item.platform in (None, ("linux", architecture))]
    if not fitting:
        platforms = sorted({"/".join(item.platform) for item in found if item.platform})
        raise DocumentError(f"has nothing for linux/{architecture}, but {', '.join(platforms) or 'no image at all'}")
    exact = [item for item in fitting if item.platform] or fitting
    if len({item.digest for item in exact}) > 1:
        raise DocumentError(f"has several images: say which by tag= ({', '.join(tags) or 'they have no names'})")
    return exact[0]


def parse_manifest(data: bytes) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    """The configuration and the layers, lowest first."""
    document = _document(data)
    if "manifests" in document:
        raise DocumentError("is an index where a manifest should be")
    layers = tuple(_descriptor(item) for item in _list(document, "layers"))
    for layer in layers:
        if not _LAYER.fullmatch(layer.kind):
            raise DocumentError(f"has a layer of the kind {layer.kind!r}, which is no root file system's")
    return _descriptor(document.get("config")), layers


def select_saved(data: bytes, tag: str | None) -> tuple[str, tuple[str, ...]]:
    """Of the manifest that `docker save` writes: the names of the configuration's file and of the layers', lowest first, of
    the image that is called `tag`, if there are several: docker.io/library/debian:12 is called debian:12, debian and 12, too."""
    try:
        items = _loaded(data)
    except (ValueError, RecursionError) as exc:
        raise DocumentError("has a manifest that is not JSON") from exc
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items) or not items:
        raise DocumentError("has a manifest that is no list of images")
    named = [(item, _texts(item, "RepoTags")) for item in items]
    there = ", ".join(sorted({name for _, names in named for name in names})) or "they have no names"
    if tag is not None:
        named = [(item, names) for item, names in named if any(_is_called(name, tag) for name in names)]
        if not named:
            raise DocumentError(f"is not named {tag!r}; there are {there}")
    if len({_text(item, "Config") for item, _ in named}) > 1:
        raise DocumentError(f"is one of several: say which by tag= ({there})")
    chosen = named[0][0]
    _list(chosen, "Layers")
    return _text(chosen, "Config"), _texts(chosen, "Layers")


def _is_called(name: str, tag: str) -> bool:
    place, _, version = name.rpartition(":")
    return tag in (name, version, place) or f"/{name}".endswith(f"/{tag}") or f"/{place}".endswith(f"/{tag}")


def parse_configuration(data: bytes) -> Configuration:
    """What is in the configuration's document."""
    document = _document(data)
    said = document.get("config") or {}
    rootfs = document.get("rootfs") or {}
    if not isinstance(said, dict) or not isinstance(rootfs, dict):
        raise DocumentError("has a configuration that is no object")
    pairs = [text.partition("=") for text in _texts(said, "Env")]
    return Configuration(
        env={name: value for name, _, value in pairs if name},
        cmd=_texts(said, "Cmd"),
        entrypoint=_texts(said, "Entrypoint"),
        user=_text(said, "User"),
        workdir=_text(said, "WorkingDir"),
        architecture=_text(document, "architecture"),
        diff_ids=tuple(_digest(text) for text in _texts(rootfs, "diff_ids")),
    )


def _loaded(data: bytes) -> Any:
    """What a text says. It is made out in one go, and nothing else runs meanwhile: 4 MiB of text are 4 ms, of lists 400."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") + data.count(b"\\") > _MOST_PARTS:
        raise DocumentError(f"has more than {_MOST_PARTS} values")
    return json.loads(data)


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = _loaded(data)
    except (ValueError, RecursionError) as exc:
        raise DocumentError("is not JSON") from exc
    if not isinstance(document, dict):
        raise DocumentError("is not a JSON object")
    return document


def _descriptor(item: Any) -> Descriptor:
    if not isinstance(item, dict):
        raise DocumentError("lacks a descriptor")
    size = item.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < _LARGEST:
        raise DocumentError(f"has a descriptor of size {size!r}")
    platform = item.get("platform")
    where = (str(platform.get("os")), str(platform.get("architecture"))) if isinstance(platform, dict) else None
    notes = item.get("annotations")
    tag = notes.get(_NAME) if isinstance(notes, dict) else ""
    return Descriptor(
        _text(item, "mediaType"), _digest(item.get("digest")), size, where, tag if isinstance(tag, str) else ""
    )


def _digest(text: Any) -> str:
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise DocumentError(f"has {text!r} where a digest should be")
    return text


def _list(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list) or len(value) > _MOST_LAYERS:
        raise DocumentError(f"has no list {key!r}" if not isinstance(value, list) else f"has {len(value)} {key}")
    return value


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key) or ""
    if not _is_text(value):
        raise DocumentError(f"has {value!r} as {key}")
    return value


def _texts(document: dict[str, Any], key: str) -> tuple[str, ...]:
    value = document.get(key) or []
    if not isinstance(value, list) or not all(_is_text(item) for item in value):
        raise DocumentError(f"has {key} that is no list of texts")
    return tuple(value)


def _is_text(value: Any) -> TypeGuard[str]:
    """That the system can be told: JSON's may have half a character."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
