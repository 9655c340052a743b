"""Writing so that half-written data never looks finished.

    body writes ──> .NAME.HOST-PID.tmp ── fsync ── rename ──> NAME        a reader sees the old one or the new one

Every file or folder goes to a temporary name beside its target, is flushed to the disk, and is renamed
into place. A full disk or a missing permission becomes a StorageError, and what was there before is still
there. What a killed process left behind is swept away by the next write of the same name.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cairn.errors import CairnError, ConfigError, storage_error

__all__ = [
    "atomic_file",
    "atomic_folder",
    "fsync_path",
    "lock_file",
    "sha256_file",
    "sha256_json",
    "write_json",
    "write_text",
]

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}


def fsync_path(path: Path) -> None:
    """Flushes a file or a folder entry to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and keeps its entries by itself
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is fsynced and renamed onto `path`.

    Raises:
        StorageError: the disk is full, read-only, or the folder may not be written. Any other error of the body
            (a missing input file, say) passes through unchanged.
    """
    path = Path(path)
    temporary = _beside(path, "tmp")
    try:
        with _storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
        with _body_errors(path, temporary):
            yield temporary
        with _storage_errors(path):
            fsync_path(temporary)
            os.replace(temporary, path)
            fsync_path(path.parent)
    finally:
        _remove(temporary)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success its files are fsynced and it replaces `path`.

    An existing folder is exchanged in one step where the system can (Linux); elsewhere it is moved aside first,
    and deleted only after the new one is in place.

    Raises:
        StorageError: the disk is full, read-only, or the folder may not be written. Any other error of the body
            passes through unchanged.
    """
    path = Path(path)
    temporary, aside = _beside(path, "tmp"), _beside(path, "old")
    try:
        with _storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            temporary.mkdir()
        with _body_errors(path, temporary):
            yield temporary
        with _storage_errors(path):
            for entry in sorted(temporary.rglob("*")):
                fsync_path(entry)
            fsync_path(temporary)
            if not path.exists():
                os.replace(temporary, path)
            elif not _exchange(temporary, path):
                os.replace(path, aside)
                os.replace(temporary, path)
            fsync_path(path.parent)
    finally:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        _remove(temporary)
        _remove(aside)


def lock_file(file: IO[Any], path: Path, doing: str) -> None:
    """Keeps other processes out until `file` is closed, by this process or by its end.

    Args:
        file: open; a second process that locks the same file is refused.
        path: what the error names.
        doing: what the other process does there.

    Raises:
        ConfigError: another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            str(path), [f"another process is {doing}"], next="wait for it, or choose another --out"
        ) from None
    except OSError:  # a file system that has no locks
        return


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON atomically, indented, keys in the order given, NaN refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: str | Path) -> str:
    """Returns the hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Returns the hex SHA-256 of a value's canonical JSON (sorted keys): a fingerprint of settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


@contextmanager
def _body_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Turns what the body could not write into a StorageError; its other errors are not about `path`."""
    try:
        yield
    except CairnError:
        raise
    except OSError as error:
        named = error.filename
        if named is None:  # write() and fsync() errors carry no file name
            ours = error.errno in _DISK_ERRORS
        else:
            ours = isinstance(named, str | os.PathLike) and Path(named).is_relative_to(temporary)
        if ours:
            raise storage_error(error, path) from error
        raise
    except Exception as error:  # torch and safetensors report a full disk as errors of their own
        if os.strerror(errno.ENOSPC) in str(error) or (isinstance(error, RuntimeError) and _is_full(path.parent)):
            raise storage_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path) from error
        raise


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < 65536


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.{suffix}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # the error that led here matters more
            path.unlink()


def _sweep(path: Path) -> None:
    """Removes what dead processes of this machine left beside `path`; a folder moved aside goes back first."""
    prefix = f".{path.name}.{platform.node()}-"
    for left in path.parent.iterdir():
        if not left.name.startswith(prefix):
            continue
        pid, _, suffix = left.name[len(prefix) :].partition(".")
        if suffix not in ("tmp", "old") or not pid.isdigit() or (int(pid) != os.getpid() and _is_alive(int(pid))):
            continue
        if suffix == "old" and not path.exists():
            os.replace(left, path)
        else:
            _remove(left)


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # there, signal 0 is not a question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; returns False where the system or its file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
