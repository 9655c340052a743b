"""Opening evaluation files: plain, .gz, .xz and .zst text, and JSON lines, with errors that say what is wrong.

The corpora of data/ have a richer reader; evaluation may not import its sibling, and needs only this much.
"""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from cairn.errors import DataError, MissingExtraError

__all__ = ["open_text", "read_documents", "read_rows"]


@contextmanager
def open_text(path: str | Path) -> Iterator[TextIO]:
    """Opens a text file for reading as UTF-8, unpacking by its suffix (.gz, .xz, .zst).

    Raises:
        DataError: the file is missing, may not be read, is damaged, or is not UTF-8.
        MissingExtraError: a .zst file, and zstandard is not installed.
    """
    path = Path(path)
    try:
        with _opened(path) as file:
            yield file
    except FileNotFoundError:
        raise DataError("no such file", value=str(path), next="check the path") from None
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8 text", value=str(path), allowed=f"UTF-8 ({error.reason})") from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError("damaged or cut-off archive", value=str(path), next=f"fetch it again ({error})") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", value=str(path)) from None


def _opened(path: Path) -> TextIO:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8", newline="")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    if path.suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise MissingExtraError("zstandard", "data") from None
        return zstandard.open(path, "rt", encoding="utf-8", newline="")
    return open(path, encoding="utf-8", newline="")


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON lines file.

    Raises:
        DataError: as `open_text`, or a line is not a JSON object (with its number).
    """
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: not a JSON object", value=line.strip(), allowed="{...}")
            yield row


def read_documents(path: str | Path, field: str = "text") -> Iterator[str]:
    """Yields the documents of a file: `field` of each JSON line, or a plain text file as one document.

    Raises:
        DataError: as `read_rows`, or a row lacks the field.
    """
    if ".jsonl" in Path(path).suffixes or ".json" in Path(path).suffixes:
        for number, row in enumerate(read_rows(path), start=1):
            if not isinstance(row.get(field), str):
                raise DataError(f"{path}, row {number}: no text field", value=field, allowed=", ".join(row))
            yield row[field]
    else:
        with open_text(path) as file:
            yield file.read()
