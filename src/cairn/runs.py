"""Run folders: what a command leaves behind.

    runs/NAME/
      config.yaml      the resolved configuration; a second call must match it
      versions.json    Python, packages, device, git commit, seed, command
      metrics.jsonl    one JSON object a line, appended and flushed
      checkpoints/     (training) see training/checkpoint.py
      manifest.json    written last: its presence means the run is whole; file -> SHA-256
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from pydantic import BaseModel

from cairn.config import read_yaml, save_config
from cairn.errors import ArtifactError, ConfigError, DataError, storage_error
from cairn.files import lock_file, sha256_file, sha256_json, write_json, write_text

__all__ = ["RunFolder", "read_jsonl", "versions"]

_PACKAGES = ("cairn-lm", "torch", "transformers", "peft", "tokenizers", "numpy", "lm_eval", "datasets")


def versions(seed: int | None = None) -> dict[str, Any]:
    """Returns what a reader needs to repeat a run: packages, machine, commit, seed and command."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "packages": found,
        "machine": f"{platform.machine()}, {os.cpu_count()} logical cores, {platform.system()}",
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "seed": seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _git(*arguments: str) -> str | None:
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


class RunFolder:
    """One command's folder; opening an existing one resumes it if the configuration is the same.

    Args:
        path: the folder, made if missing.
        config: the resolved configuration, saved as config.yaml.
        seed: recorded in versions.json.
        alone: other processes may not open the folder while this object lives; False: they work in it together.

    Raises:
        ConfigError: the folder holds a run with other settings, or another process is at work in it.
        ArtifactError: the folder's versions.json is damaged.
        StorageError: the folder cannot be made or written.
    """

    def __init__(self, path: str | Path, config: BaseModel, *, seed: int | None = None, alone: bool = True) -> None:
        self.path = Path(path)
        fingerprint = sha256_json(config.model_dump(mode="json"))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.path) from error
        stamp = self.path / "versions.json"
        if stamp.exists():
            if _config_of(stamp) != fingerprint:
                raise ConfigError(
                    str(self.path),
                    [f"this run folder was made with other settings{_differences(self.path, config)}"],
                    next="choose another folder with --out, or delete this one",
                )
            self.resumed = True
            _end_last_line(self.path / "metrics.jsonl")
        else:
            save_config(config, self.path / "config.yaml")
            write_json(stamp, {"config_sha256": fingerprint, **versions(seed)})
            self.resumed = False
        self._hold = _hold(stamp) if alone else None

    @property
    def finished(self) -> bool:
        """True if the manifest is there: the run is whole."""
        return (self.path / "manifest.json").exists()

    def log(self, **values: Any) -> None:
        """Appends one line to metrics.jsonl and flushes it."""
        try:
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise storage_error(error, self.path / "metrics.jsonl") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the metrics written so far, in order."""
        path = self.path / "metrics.jsonl"
        return read_jsonl(path) if path.exists() else []

    def trim_metrics(self, step: int) -> None:
        """Drops metrics after `step`, so that a resumed run does not log a step twice."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = [row for row in read_jsonl(path) if row.get("step", 0) <= step]
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def finish(self, outputs: list[str]) -> None:
        """Writes manifest.json with the SHA-256 of each output file (paths relative to the folder)."""
        write_json(
            self.path / "manifest.json",
            {"finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
             "files": {name: sha256_file(self.path / name) for name in outputs}},
        )


class _Hold:
    """A folder that this process has to itself, as long as one of its RunFolders lives."""

    def __init__(self, stamp: Path) -> None:
        self._file = open(stamp, "rb")  # as long as the lock is wanted
        lock_file(self._file, stamp.parent, "at work in this run folder")

    def __del__(self) -> None:
        self._file.close()


_HELD: WeakValueDictionary[Path, _Hold] = WeakValueDictionary()


def _hold(stamp: Path) -> _Hold:
    place = stamp.resolve()
    held = _HELD.get(place)
    if held is None:
        held = _HELD[place] = _Hold(stamp)
    return held


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Reads JSON lines; an unfinished last line (an interrupt while appending) is left out.

    Raises:
        DataError: a line is no JSON object; the error names file and line.
    """
    rows: list[dict[str, Any]] = []
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                if not line.endswith("\n"):
                    break
                row = None
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number}: not a JSON object", value=line.strip(), allowed='one {"key": value} a line'
                )
            rows.append(row)
    return rows


def _config_of(stamp: Path) -> str:
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))["config_sha256"]
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(
            "this run folder's versions.json is damaged", value=str(stamp), next="delete the run folder, or use --out"
        ) from None


def _differences(folder: Path, config: BaseModel) -> str:
    """Names up to three settings that differ from the folder's config.yaml."""
    try:
        earlier = _flat(read_yaml(folder / "config.yaml"))
    except ConfigError:
        return " (its config.yaml cannot be read)"
    now = _flat(config.model_dump(mode="json"))
    keys = [key for key in {**earlier, **now} if earlier.get(key) != now.get(key)]
    shown = [f"{key} was {earlier.get(key)!r}, is {now.get(key)!r}" for key in keys[:3]]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f" ({'; '.join(shown)}{more})" if shown else " (see its config.yaml)"


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in items for k, v in _flat(inner, f"{place}.{key}" if place else str(key)).items()}
    return {place: value}


def _end_last_line(path: Path) -> None:
    """Cuts off a half-written last line, so that the next one is not appended to it."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        try:
            os.truncate(path, data.rfind(b"\n") + 1)
        except OSError as error:
            raise storage_error(error, path) from error
