"""Sources are read whole and in order, and every fault names the file, the line and what to do."""

from __future__ import annotations

import builtins
import gzip
import itertools
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import zstandard
from pydantic import ValidationError

from cairn.config import load_config, parse_config, save_config
from cairn.data.corpora import SourceConfig, cut_document, iterate, source_files
from cairn.errors import ConfigError, DataError, MissingExtraError

DOCUMENTS = ["One cat.\nTwo cats.", "naïve Ω 🙂", "<|eos|> is text"]


def source(path: Path | str | None = None, **settings: Any) -> SourceConfig:
    return SourceConfig(name="small", licence="CC0", path=None if path is None else str(path), **settings)


def jsonl(documents: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({field: text, "id": n}) + "\n" for n, text in enumerate(documents)).encode()


PACK = {
    "": lambda data: data, ".gz": gzip.compress, ".xz": lzma.compress,
    # Two frames and a size that no read buffer divides.
    ".zst": lambda data: zstandard.compress(data[:7]) + zstandard.compress(data[7:]),
}  # fmt: skip


@pytest.mark.parametrize("packing", PACK)
def test_jsonl_and_text_come_back_from_every_packing(tmp_path: Path, packing: str) -> None:
    (tmp_path / f"a.jsonl{packing}").write_bytes(PACK[packing](jsonl(DOCUMENTS)))
    (tmp_path / f"b.txt{packing}").write_bytes(PACK[packing]("a line\nanother — line\n".encode()))
    assert list(iterate(source(tmp_path / f"a.jsonl{packing}"))) == DOCUMENTS
    assert list(iterate(source(tmp_path / f"b.txt{packing}"))) == ["a line\nanother — line\n"]


def test_large_zst_is_read_in_pieces(tmp_path: Path) -> None:
    documents = [f"number {n} " * 200 for n in range(300)]
    (tmp_path / "big.jsonl.zst").write_bytes(zstandard.compress(jsonl(documents)))
    assert list(iterate(source(tmp_path / "big.jsonl.zst"))) == documents


def test_folders_globs_and_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, text in {"b.txt": "second", "a.txt": "first", "notes.pdf": "not read"}.items():
        (tmp_path / "in" / name).write_text(text)
    assert list(iterate(source(tmp_path / "in"))) == ["first", "second"]
    assert list(iterate(source("in/b*.txt"), root=tmp_path)) == ["second"]
    assert [file.name for file in source_files(source("in"), tmp_path)] == ["a.txt", "b.txt"]
    assert source_files(source(generator="lookup", weight=0.5)) == []


def test_cleaning_drops_marks_and_normalises_line_ends_unless_switched_off(tmp_path: Path) -> None:
    raw = "\ufeffone\r\ntwo\rthree_ \n"
    (tmp_path / "a.jsonl").write_bytes(jsonl([raw, " \n\t"]))
    assert list(iterate(source(tmp_path / "a.jsonl"))) == ["one\ntwo\nthree_ \n"]
    assert list(iterate(source(tmp_path / "a.jsonl", clean={"newlines": False, "bom": False}))) == [raw]


def test_separator_cuts_a_text_file_into_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>two<|endoftext|>\n")
    assert list(iterate(source(tmp_path / "a.txt", separator="<|endoftext|>"))) == ["one\n", "two"]


def test_max_bytes_cuts_the_last_document_at_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["12345", "äöü", "never"]))
    assert list(iterate(source(tmp_path / "a.jsonl", max_bytes=8))) == ["12345", "ä"]
    assert list(iterate(source(tmp_path / "a.jsonl", max_bytes=11))) == ["12345", "äöü"]


def test_generator_is_endless_seeded_and_bounded_by_max_bytes() -> None:
    endless = source(generator="lookup", weight=0.3)
    first = list(itertools.islice(iterate(endless, seed=1), 5))
    assert first == list(itertools.islice(iterate(endless, seed=1), 5))
    assert first != list(itertools.islice(iterate(endless, seed=2), 5))
    capped = list(iterate(source(generator="lookup", weight=0.3, max_bytes=3000), seed=1))
    assert sum(len(text.encode()) for text in capped) == 3000


def test_hub_dataset_from_a_folder_of_files_and_from_a_saved_one(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"body": DOCUMENTS})
    rows.save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.jsonl").write_bytes(jsonl(DOCUMENTS, "body"))
    for name in ("saved", "files"):
        assert list(iterate(source(hub=str(tmp_path / name), text_field="body"))) == DOCUMENTS
    with pytest.raises(DataError, match=r"row 1: no field 'bod' \(did you mean body\?\).*one of the fields there"):
        list(iterate(source(hub=str(tmp_path / "saved"), text_field="bod")))
    with pytest.raises(DataError, match="small: hub dataset cannot be loaded .*Next: check hub"):
        list(iterate(source(hub=str(tmp_path / "files"), text_field="body", hub_split="test")))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "corrupt"])
def test_damaged_compressed_file_is_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    whole = PACK[suffix](jsonl([f"{n} {n * n}" for n in range(5000)]))
    half = len(whole) // 2
    bad = whole[:half] if damage == "truncated" else whole[:half] + bytes(40) + whole[half + 40 :]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(bad)
    with pytest.raises(DataError, match="compressed file is corrupt or truncated.*download the file again") as caught:
        list(iterate(source(path)))
    assert caught.value.value == str(path)


def test_zst_cut_exactly_before_its_last_byte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"all of it\n" * 100)[:-1])
    with pytest.raises(DataError, match="corrupt or truncated"):
        list(iterate(source(tmp_path / "a.txt.zst")))


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "stories.jsonl").write_bytes(jsonl(DOCUMENTS))
    with pytest.raises(DataError, match=r"source small: no such file \(did you mean stories.jsonl\?\): .*storys.jsonl"):
        list(iterate(source(tmp_path / "storys.jsonl")))
    with pytest.raises(DataError, match="no readable file in the folder"):
        (tmp_path / "empty").mkdir()
        list(iterate(source(tmp_path / "empty")))
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(DataError, match=r"cannot tell the format of the file: .*Allowed: .jsonl, .ndjson"):
        list(iterate(source(tmp_path / "a.pdf")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not json", r"a.jsonl, line 2: not JSON \(Expecting value at column 1\): 'not json.*repair the line"),
        (b'{"text": "cut', r"line 2: not JSON"),
        (b"[1, 2]", r"line 2: a JSON list: \[1, 2\]. Allowed: one JSON object a line"),
        (b'{"txt": "x", "id": 1}', r"line 2: no field 'text' \(did you mean txt\?\). Allowed: .*id, txt.*text_field"),
        (b'{"text": 7}', r"line 2: field 'text' is not text: 7. Allowed: a string"),
        (b'{"text": "\\ud83d half"}', r"line 2: the text is not valid Unicode \(a lone surrogate at character 0\)"),
        (b'{"text": "caf\xe9"}', r"line 2: not UTF-8 .*iconv"),
    ],
)
def test_bad_line_is_refused_with_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["fine"]) + line + b"\n")
    reading = iterate(source(tmp_path / "a.jsonl"))
    assert next(reading) == "fine"
    with pytest.raises(DataError, match=message):
        next(reading)


def test_plain_text_that_is_not_utf8_and_a_source_without_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"a.txt: not UTF-8 \(.* at byte 3\).*iconv -f LATIN1 -t UTF-8 a.txt"):
        list(iterate(source(tmp_path / "a.txt")))
    (tmp_path / "b.jsonl").write_bytes(b"\n  \n" + jsonl([" "]))
    with pytest.raises(DataError, match="source small has no text: .*Allowed: at least one document"):
        list(iterate(source(tmp_path / "b.jsonl")))


@pytest.mark.parametrize(("package", "given"), [("zstandard", "path"), ("datasets", "hub")])
def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, given: str) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"text"))
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed. Next: pip install 'cairn-lm\[data\]'"):
        list(iterate(source(**{given: str(tmp_path / "a.txt.zst")})))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give exactly one of path, hub, generator; given: none"),
        ({"path": "a", "hub": "b"}, "given: path, hub"),
        ({"generator": "lookup"}, "a generator is infinite: give its weight"),
        ({"path": "a", "hub_split": "test"}, "need hub"),
        ({"hub": "a", "separator": "--"}, "separator needs path"),
        ({"path": "a", "weight": 0}, "weight"),
    ],
)
def test_contradictory_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source(**settings)
    with pytest.raises(ConfigError, match=message):
        parse_config(SourceConfig, {"name": "small", "licence": "CC0", **settings}, "recipe")


def test_licence_is_required_and_a_saved_source_reloads_equal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="licence: required, but missing"):
        parse_config(SourceConfig, {"name": "small", "path": "a"}, "recipe")
    made = source("a.txt", repeat=2.5, max_bytes=100)
    save_config(made, tmp_path / "source.yaml")
    assert load_config(SourceConfig, tmp_path / "source.yaml") == made


def test_cutting_keeps_all_words_and_ends_pieces_at_paragraphs() -> None:
    paragraphs = [f"Paragraph {n} " + "goes on and on. " * (n % 9 + 3) for n in range(60)]
    text = "\n\n".join(paragraphs)
    pieces = list(cut_document(text, 800))
    assert " ".join(" ".join(pieces).split()) == " ".join(text.split())
    assert max(map(len, pieces)) <= 800
    assert all(piece.split("\n\n")[-1] in paragraphs for piece in pieces)
    assert list(cut_document("short\n", 800)) == ["short\n"]


def test_cutting_without_paragraphs_falls_back_to_spaces_and_then_to_length() -> None:
    words = " ".join(f"word{n}" for n in range(500))
    pieces = list(cut_document(words, 64))
    assert "".join(pieces) == words and all(piece.strip().split()[0].startswith("word") for piece in pieces)
    solid = "x" * 1000
    assert [len(piece) for piece in cut_document(solid, 64)] == [64] * 15 + [40]
