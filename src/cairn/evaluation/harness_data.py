"""lm-evaluation-harness on local files: its datasets are read from a folder instead of the hub.

    task's YAML: dataset_path, dataset_name, split ─┬─ DIR/org__name/CONFIG/SPLIT.jsonl    rows as the hub has them
                                                    └─ DIR/arc_easy_test.jsonl.xz, ...     short names, see KNOWN
                       rows ── adapter (see harness_sources) ── datasets.Dataset ──> the harness's own doc_to_text

A file or a split that is missing is an error which names what is expected where.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cairn.errors import DataError
from cairn.evaluation.harness_sources import KNOWN, Source
from cairn.evaluation.textfiles import read_rows

__all__ = ["LocalData", "Splits", "dataset_file"]

Row = dict[str, Any]
_SUFFIXES = (".jsonl", ".jsonl.xz", ".jsonl.gz", ".jsonl.zst", ".parquet")


def dataset_file(folder: Path, stem: str) -> Path | None:
    """Returns the file of a stem in a folder, whatever its suffix; None if there is none."""
    return next((path for path in (folder / (stem + suffix) for suffix in _SUFFIXES) if path.is_file()), None)


class LocalData:
    """The user's folder of benchmark data.

    Args:
        folder: as given with --data-dir.

    Raises:
        DataError: there is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError("no such data folder", value=str(folder), next="check --data-dir")
        self._rows: dict[Path, list[Row]] = {}

    def rows(self, path: Path) -> list[Row]:
        """Returns the rows of one file, read once."""
        if path not in self._rows:
            if path.suffix == ".parquet":
                import pyarrow.parquet

                self._rows[path] = pyarrow.parquet.read_table(path).to_pylist()
            else:
                self._rows[path] = list(read_rows(path))
        return self._rows[path]

    def file(self, stem: str) -> Path | None:
        """Returns the file of a short name; None if it is not there."""
        return dataset_file(self.folder, stem)


@dataclass
class Splits:
    """What the harness takes for a DatasetDict: each split is read when it is asked for.

    Args:
        data: the folder.
        task: for errors.
        dataset, name: `dataset_path` and `dataset_name` of the task's YAML.
        evaluated: the split that is scored, which must be there.
        shots: solved examples; with none of them, the other splits are empty, there or not.
        files: filled: split -> file that was read.
        notes: filled: what a reader of the result must know.
    """

    data: LocalData
    task: str
    dataset: str
    name: str | None
    evaluated: str | None
    shots: int
    files: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _made: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, split: str) -> Any:
        if split not in self._made:
            self._made[split] = self._read(split)
        return self._made[split]

    def __contains__(self, split: str) -> bool:
        return self._found(split) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def keys(self) -> list[str]:
        """Returns the splits read so far."""
        return list(self._made)

    @property
    def _folder(self) -> Path:
        return self.data.folder / self.dataset.replace("/", "__") / (self.name or "default")

    def _source(self, split: str) -> Source | None:
        known = KNOWN.get(self.dataset, {})
        return known.get((self.name or "", split)) or known.get(("*", split))

    def _found(self, split: str) -> tuple[Path, Source] | None:
        path = dataset_file(self._folder, split)
        source = self._source(split)
        if path is not None:
            return path, Source(split, source.needs if source else ())
        path = self.data.file(source.file) if source else None
        return None if source is None or path is None else (path, source)

    def _read(self, split: str) -> Any:
        from datasets import Dataset

        if self.shots == 0 and split != self.evaluated:
            return Dataset.from_list([])
        found = self._found(split)
        if found is None:
            raise self._missing(split)
        path, source = found
        rows, adapted = [], False
        for number, row in enumerate(self.data.rows(path), start=1):
            if not source.keep(row, self.name or ""):
                continue
            adapted = adapted or not all(name in row for name in source.needs)
            try:
                row = source.adapt(row, self.data)
            except (KeyError, ValueError, TypeError, IndexError) as error:
                raise DataError(f"{path}, row {number}: not as expected ({error!r})", value=row) from None
            lacking = [name for name in source.needs if row.get(name) is None]
            if lacking:
                raise DataError(
                    f"{path}, row {number}: it lacks {', '.join(lacking)}", value=row, allowed=", ".join(source.needs)
                )
            rows.append(row)
        if not rows:
            raise DataError(f"{path} has no rows for {self.task}", value=self.name, next="check that the file is whole")
        self.files[split] = path
        told = [source.note, source.adapted if adapted else ""]
        self.notes += [f"{path.name}: {note}" for note in told if note and f"{path.name}: {note}" not in self.notes]
        return Dataset.from_list(rows)

    def _missing(self, split: str) -> DataError:
        source = self._source(split)
        expected = [str((self._folder / split).relative_to(self.data.folder)) + ".jsonl (rows as the hub has them)"]
        if source is not None:
            expected.insert(0, f"{source.file}.jsonl")
        wanted = "the split that is scored" if split == self.evaluated else f"solved examples ({self.shots} shots)"
        step = "put the file there" + ("" if split == self.evaluated else f", or --shots {self.task}=0")
        return DataError(
            f"{self.task} needs split {split!r} of {self.dataset}, {wanted}, and it is not in {self.data.folder}",
            value=self.name or "default", allowed=" or ".join(expected) + ", also as .xz, .gz, .zst or .parquet",
            next=step,
        )  # fmt: skip
