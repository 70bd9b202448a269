"""What is pushed to the host: all that matters, once, and only what changed."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import shutil
import tarfile

import pytest

from tests.kvmhost.arch import AARCH64
from tests.kvmhost.delegate import read_report
from tests.kvmhost.errors import BuildFailed
from tests.kvmhost.project import (
    Source,
    Update,
    bare_metal_guests,
    digest,
    manifest,
    parse_manifest,
    project_tree,
    update_archive,
)
from tests.kvmhost.settings import PROJECT
from tools import cross


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "p"\nversion = "1"\n[project.scripts]\np = "p:main"\n')
    for name in ("p/__init__.py", "p/native/_native.abi3.so", "p/__pycache__/x.pyc", ".git/config", "build/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_code_and_built_extension_go_compiled_files_and_repository_stay(checkout: pathlib.Path) -> None:
    tree = project_tree(checkout)
    assert {path for path in tree if path.startswith("/root")} == {
        "/root/aiovmm/pyproject.toml",
        "/root/aiovmm/p/__init__.py",
        "/root/aiovmm/p/native/_native.abi3.so",
    }
    assert tree["/opt/aiovmm/bin/p"].mode == 0o755


@pytest.mark.skipif(shutil.which("as") is None, reason="binutils is missing, and nothing can be assembled")
def test_guests_that_tests_assemble_go_as_they_were_built() -> None:
    names = {pathlib.PurePath(path).name.partition("-")[0] for path in bare_metal_guests(PROJECT)}
    assert names == {path.stem for path in (PROJECT / "tests/guests").glob("*.S")}


def test_a_skip_in_the_host_is_one_here(pytestconfig: pytest.Config) -> None:
    made = pytest.TestReport("a", ("a", 1, "a"), {}, "skipped", ("file.py", 7, "Skipped: why"), "call")
    data = pytestconfig.hook.pytest_report_to_serializable(config=pytestconfig, report=made)
    assert read_report(pytestconfig, json.dumps(data)).longrepr == ("file.py", 7, "Skipped: why")


def test_another_architecture_gets_the_extension_that_was_built_for_it(
    checkout: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = dataclasses.replace(AARCH64, name="riscv64")  # whatever this machine is
    built = tmp_path / "built.so"
    built.write_bytes(b"cross compiled")
    monkeypatch.setattr(cross, "extension", {"riscv64": built}.__getitem__)
    (checkout / "aiovmm/native").mkdir(parents=True)
    (checkout / "aiovmm/native/_native.abi3.so").write_bytes(b"this machine's")
    assert project_tree(checkout, foreign)["/root/aiovmm/aiovmm/native/_native.abi3.so"].content == b"cross compiled"
    assert project_tree(checkout)["/root/aiovmm/aiovmm/native/_native.abi3.so"].content == b"this machine's"

    def refuse(machine: str) -> pathlib.Path:
        raise cross.CrossBuildFailed("vcpu.c:308: error")

    monkeypatch.setattr(cross, "extension", refuse)
    with pytest.raises(BuildFailed, match=r"vcpu\.c:308"):
        project_tree(checkout, foreign)


def test_a_file_changes_by_content_and_permissions_not_by_time(checkout: pathlib.Path) -> None:
    before = manifest(project_tree(checkout))
    path = checkout / "p/__init__.py"
    path.touch()
    assert manifest(project_tree(checkout)) == before
    path.chmod(0o755)
    after = manifest(project_tree(checkout))
    assert Update.between(before, after) == Update(["/root/aiovmm/p/__init__.py"], [])
    assert digest(after) != digest(before)


def test_an_update_says_what_changed_and_what_is_gone() -> None:
    update = Update.between({"/a": "1", "/b": "1", "/c": "1"}, {"/a": "1", "/b": "2", "/d": "1"})
    assert update == Update(["/b", "/d"], ["/c"])


def test_the_archive_carries_the_changes_and_ends_with_the_digest() -> None:
    tree = {"/root/aiovmm/a": Source(b"A", 0o755, 7), "/root/aiovmm/b": Source(b"B")}
    archive = update_archive(tree, Update(["/root/aiovmm/a"], ["/root/aiovmm/gone"]))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        first = tar.getmembers()[0]
    assert list(members) == [
        "root/aiovmm/a",
        *(f"root/aiovmm/.kvmhost/{name}" for name in ("gone", "manifest.json", "digest")),
    ]
    assert (first.mode, first.mtime) == (0o755, 7)
    assert members["root/aiovmm/.kvmhost/gone"] == b"/root/aiovmm/gone\0"
    assert parse_manifest(members["root/aiovmm/.kvmhost/manifest.json"]) == manifest(tree)


@pytest.mark.parametrize("text", [b"", b"{", b"[]"])
def test_a_damaged_manifest_means_that_all_is_sent(text: bytes) -> None:
    assert parse_manifest(text) == {}
