"""Rows of a file as mappings: JSON lines, a JSON list, CSV and TSV, plain or packed.

A fault names the file and the line. A row of a table that has other cells than its header keeps them, with what is
wrong under the key None.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cairn.data.corpora import damage_errors, open_packed
from cairn.errors import DataError, did_you_mean

__all__ = ["file_rows"]

_LINES = (".jsonl", ".ndjson")
_TABLES = {".csv": ",", ".tsv": "\t"}
_PACKED = (".gz", ".xz", ".zst")
_READABLE = ".jsonl, .ndjson, .json, .csv, .tsv, each also with .gz, .xz or .zst"
_CELL_CHARACTERS = 64 << 20  # the csv module's own limit would end the file at the first long cell


def file_rows(path: str | Path) -> Iterator[dict[Any, Any]]:
    """Yields the raw rows of a file: JSON lines, a JSON list, CSV or TSV, plain or packed.

    Raises:
        DataError: the file is missing, unreadable, damaged, not UTF-8, or a line is not what its format says.
        MissingExtraError: .zst without zstandard.
    """
    path = Path(path)
    suffix = (path.with_suffix("") if path.suffix.lower() in _PACKED else path).suffix.lower()
    if suffix not in (*_LINES, *_TABLES, ".json"):
        raise DataError("cannot tell the format of the file", value=str(path), allowed=_READABLE)
    try:
        with open_packed(path) as stream:
            if suffix in _TABLES:
                yield from _table_rows(path, stream, _TABLES[suffix])
            elif suffix == ".json":
                yield from _json_rows(path, stream)
            else:
                yield from _line_rows(path, stream)
    except FileNotFoundError:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"no such file{did_you_mean(path.name, beside)}", value=str(path), next="check path") from None
    except damage_errors() as error:
        raise DataError(f"the file is damaged or cut off ({error})", value=str(path), next="fetch it again") from None
    except OSError as error:
        raise DataError(f"the file cannot be read ({error.strerror or error})", value=str(path)) from None


def _text(path: Path, number: int, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})",
            next=f"convert it: iconv -f LATIN1 -t UTF-8 {path.name}",
        ) from None  # fmt: skip


def _line_rows(path: Path, stream: Any, first: int = 1) -> Iterator[dict[str, Any]]:
    for number, data in enumerate(stream, start=first):
        line = _text(path, number, data)
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error})", value=line.strip(), allowed="one JSON object a line"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a JSON {type(row).__name__}", allowed="one JSON object a line")
        yield row


def _json_rows(path: Path, stream: Any) -> Iterator[dict[str, Any]]:
    """Reads a list of objects; a .json file whose first line is an object is taken for JSON lines."""
    data = stream.read()
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
        yield from _line_rows(path, io.BytesIO(data))
        return
    lines = data.split(b"\n")
    text = "\n".join(_text(path, number, line) for number, line in enumerate(lines, start=1))
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})", allowed="a list of objects") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, item {number}: a JSON {type(row).__name__}", allowed="a list of objects")
        yield row


def _table_rows(path: Path, stream: Any, separator: str) -> Iterator[dict[Any, Any]]:
    limit = csv.field_size_limit(min(_CELL_CHARACTERS, sys.maxsize))
    try:
        texts = (_text(path, number, data) for number, data in enumerate(stream, start=1))
        reader = csv.DictReader(texts, delimiter=separator, strict=True)
        if not reader.fieldnames or len(set(reader.fieldnames)) != len(reader.fieldnames):
            raise DataError(
                f"{path}: the first line is no header", value=reader.fieldnames, allowed="distinct column names"
            )
        for row in reader:
            more, fewer = len(row.get(None) or ()), sum(cell is None for cell in row.values())
            if more or fewer:
                row[None] = f"{more or fewer} {'more' if more else 'fewer'} cells than the header has"
            yield row
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: not a table ({error})", next="check the quotes of the lines before it"
        ) from None
    finally:
        csv.field_size_limit(limit)
