"""Finding the files of a data set in a user's folder, packed or plain, and checking their rows.

    data/snips/snips_train.jsonl.xz      looked for as snips_train.jsonl, then .xz, .gz, .zst
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cairn.errors import DataError
from cairn.evaluation.textfiles import read_rows
from cairn.files import sha256_file

__all__ = ["file_hashes", "find_split", "read_split"]

_SUFFIXES = ("", ".xz", ".gz", ".zst")


def find_split(folder: Path, name: str) -> Path:
    """Returns the path of a file that may be packed.

    Args:
        folder: where it should be.
        name: file name without the suffix of a packer, such as "snips_train.jsonl".

    Raises:
        DataError: it is not there under any suffix.
    """
    for suffix in _SUFFIXES:
        if (folder / (name + suffix)).is_file():
            return folder / (name + suffix)
    raise DataError(
        "a data file is missing", value=str(folder / name), allowed=", ".join(name + suffix for suffix in _SUFFIXES),
        next="give the folder that holds the data with --set task.folder=FOLDER",
    )  # fmt: skip


def read_split(path: Path, fields: Mapping[str, type | tuple[type, ...]]) -> list[dict[str, Any]]:
    """Reads all rows of a JSON lines file.

    Args:
        path: the file.
        fields: those that every row must have, with their types.

    Raises:
        DataError: the file cannot be read, is empty, or a row lacks a field (with its number).
    """
    rows = []
    for number, row in enumerate(read_rows(path), start=1):
        wrong = [name for name, kind in fields.items() if not isinstance(row.get(name), kind)]
        if wrong:
            raise DataError(
                f"{path}, row {number}: {', '.join(wrong)} missing or of another type", value=row,
                allowed=f"an object with {', '.join(fields)}",
            )  # fmt: skip
        rows.append(row)
    if not rows:
        raise DataError("the file has no rows", value=str(path), allowed="one JSON object a line")
    return rows


def file_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """Returns name -> SHA-256 of the files read, for the facts of a result."""
    return {path.name: sha256_file(path) for path in paths}
