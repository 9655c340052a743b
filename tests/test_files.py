"""Half-written data never looks finished: killed, full disk, no permission, errors of the body."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from cairn import files
from cairn.errors import ConfigError, StorageError
from cairn.files import atomic_file, atomic_folder, sha256_file, sha256_json, write_json, write_text


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_and_replace(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "value.json"
    write_json(path, {"b": 1, "a": "é"})
    write_json(path, {"b": 2, "a": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 2, "a": "é"}
    assert list(json.loads(path.read_text(encoding="utf-8"))) == ["b", "a"]
    assert _left(path.parent) == ["value.json"]


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", 1)
    with pytest.raises(ValueError):
        write_json(tmp_path / "value.json", float("nan"))
    assert (tmp_path / "value.json").read_text() == "1\n"


def test_error_in_the_body_keeps_the_old_file_and_passes_through(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyError), atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyError("x")
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("half")
        (tmp_path / "missing_input").read_text()
    assert caught.value.filename == str(tmp_path / "missing_input")
    with pytest.raises(ConfigError), atomic_folder(tmp_path / "f") as temporary:
        raise ConfigError("x", ["y"])
    with pytest.raises(ConnectionResetError), atomic_folder(tmp_path / "f") as temporary:
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert (tmp_path / "a").read_text() == "old"
    assert _left(tmp_path) == ["a"]


def test_folder_is_replaced_whole(tmp_path: Path) -> None:
    for version in ("one", "two"):
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / version).write_text(version)
    assert _left(tmp_path / "model" / "sub") == ["two"]
    assert _left(tmp_path) == ["model"]


def test_folder_is_replaced_where_names_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(files, "_exchange", lambda one, other: bool(asked.append(other)))  # appends, returns False
    test_folder_is_replaced_whole(tmp_path)
    assert asked, "the way without an exchange was not taken"


def test_old_folder_returns_if_the_second_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("old")
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    replace, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(StorageError), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("new")
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert _left(tmp_path) == ["model"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_while_writing_leaves_the_old_and_the_next_write_sweeps(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "target"
    inside = "" if kind == "file" else " / 'part'"
    program = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from cairn.files import atomic_{kind}
        with atomic_{kind}({str(path)!r}) as temporary:
            (temporary{inside}).write_text(sys.argv[1])
            if sys.argv[1] == "new":
                print("writing", flush=True)
                time.sleep(60)
    """)
    subprocess.run([sys.executable, "-c", program, "old"], check=True)
    child = subprocess.Popen([sys.executable, "-c", program, "new"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    part = path if kind == "file" else path / "part"
    assert part.read_text() == "old"
    assert len(_left(tmp_path)) == 2  # what the killed process left
    subprocess.run([sys.executable, "-c", program, "newer"], check=True)
    assert part.read_text() == "newer"
    assert _left(tmp_path) == ["target"]


def test_folder_moved_aside_by_a_killed_process_goes_back(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    aside = files._beside(tmp_path / "model", "old")
    aside = aside.with_name(aside.name.replace(f"-{os.getpid()}.", f"-{dead.pid}."))
    aside.mkdir()
    (aside / "weights").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model"):
        raise RuntimeError("the next write fails too")
    assert (tmp_path / "model" / "weights").read_text() == "old"


def test_file_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    living = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    mine = files._beside(tmp_path / "a", "tmp")
    other = mine.with_name(mine.name.replace(f"-{os.getpid()}.", f"-{living.pid}."))
    other.write_text("in flight")
    write_text(tmp_path / "a", "x")
    assert other.read_text() == "in flight"
    living.kill()
    living.wait()
    write_text(tmp_path / "a", "x")
    assert _left(tmp_path) == ["a"]


def test_interrupt_cleans_up(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old" and _left(tmp_path) == ["a"]


def test_full_disk_is_a_storage_error_and_the_old_file_stays(small_disk: Path) -> None:
    write_text(small_disk / "a", "old")
    with pytest.raises(StorageError, match=r"^no space left on the disk: '.*/a'\. Next: free some space"):
        write_text(small_disk / "a", "x" * 2**20)
    with pytest.raises(StorageError, match="no space left"), atomic_folder(small_disk / "f") as temporary:
        (temporary / "big").write_bytes(b"x" * 2**20)
    assert (small_disk / "a").read_text() == "old"
    assert _left(small_disk) == ["a"]


def test_full_disk_under_torch_and_safetensors_is_a_storage_error_too(small_disk: Path) -> None:
    import torch
    from safetensors.numpy import save_file

    with pytest.raises(StorageError, match="no space left"), atomic_file(small_disk / "weights") as temporary:
        save_file({"x": np.zeros(2**20, dtype=np.uint8)}, temporary)
    with pytest.raises(StorageError, match="no space left"), atomic_file(small_disk / "state") as temporary:
        torch.save({"x": torch.zeros(2**20, dtype=torch.uint8)}, temporary)
    assert _left(small_disk) == []


def test_full_disk_at_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and _left(tmp_path) == ["a"]


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match=r"no permission to write: '.*/a'\. Next: choose another folder with --out"):
        write_text(tmp_path / "a", "new")
    assert _left(tmp_path) == []


def test_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        write_text(tmp_path / "file" / "a", "x")
    assert (tmp_path / "file").read_text() == "x"


def test_fingerprints(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1}) != sha256_json({"a": 1, "b": [3]})
