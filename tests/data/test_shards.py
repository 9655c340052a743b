"""Shards hold exactly the documents, and nothing that is damaged is ever opened."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from cairn.data.encoding import Encoder
from cairn.data.shards import ShardProgress, ShardSet, write_shards
from cairn.errors import DataError, ShardError, StorageError, TokenizerError
from cairn.models.tokenization import tokenizer_fingerprint, train_bpe

WORDS = "the a cat dog saw ran home with red box and little tree by old river hill".split()


def prose(count: int, length: int = 30, seed: int = 0, mark: str = "") -> list[str]:
    rng = random.Random(seed)
    return [f"{mark} " + " ".join(rng.choice(WORDS) for _ in range(length)) + f" {n}." for n in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe([*prose(300), "alpha beta gamma " * 50], 512)


@pytest.fixture
def whole(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A sound set of several shards."""
    write_shards(prose(50), tokenizer, tmp_path / "set", shard_tokens=500)
    return tmp_path / "set"


def stream_texts(shards: ShardSet, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    ids = shards.tokens(0, len(shards)).tolist()
    assert ids[0] == 1 and ids[-1] == 2
    text = tokenizer.decode(ids)
    return text.removeprefix("<|bos|>").removesuffix("<|eos|>").split("<|eos|><|bos|>")


def test_documents_come_back_from_the_stream_in_order(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    documents = [*prose(40), "naïve 🙂 ▁\n\n<|pad|>", " x "]
    summary = write_shards(documents, tokenizer, tmp_path, shard_tokens=100, name="small", licence="CC0")
    shards = ShardSet.open(tmp_path, tokenizer)
    assert stream_texts(shards, tokenizer) == documents
    expected = [i for text in documents for i in [*tokenizer(text).input_ids, 2]]
    np.testing.assert_array_equal(shards.tokens(0, len(shards)), expected)
    assert summary.tokens == len(expected) == len(shards)
    assert summary.raw_bytes == sum(len(text.encode()) for text in documents)
    assert summary.bytes_per_token == pytest.approx(summary.raw_bytes / len(expected))
    assert summary.shards == -(-len(expected) // 100) and summary.mb_per_s > 0
    assert shards.summary.sources["small"].documents == 42 and shards.summary.sources["small"].licence == "CC0"
    assert shards.vocab_size == len(tokenizer) and shards.tokenizer_fingerprint == tokenizer_fingerprint(tokenizer)


def test_a_document_that_spells_eos_does_not_end_there(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    summary = write_shards(["the<|eos|>cat<|bos|>", "dog"], tokenizer, tmp_path)
    ids = ShardSet.open(tmp_path).tokens(0, summary.tokens).tolist()
    assert ids.count(1) == 2 and ids.count(2) == 2


def test_ranges_across_shards_and_outside_the_stream(whole: Path) -> None:
    shards = ShardSet.open(whole)
    everything = shards.tokens(0, len(shards)).copy()
    for start, stop in [(0, 0), (499, 501), (500, 1000), (3, 1700), (len(shards), len(shards))]:
        np.testing.assert_array_equal(shards.tokens(start, stop), everything[start:stop])
    assert isinstance(shards.tokens(10, 20), np.memmap)
    for start, stop in [(-1, 3), (5, 4), (0, len(shards) + 1)]:
        with pytest.raises(IndexError, match=f"of a stream of {len(shards)}"):
            shards.tokens(start, stop)


def test_ids_take_two_bytes_up_to_65536_rows_and_four_above(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    for rows, width in ((2**16, 2), (2**16 + 1, 4)):
        vocabulary = {"</s>": 0, **{f"w{n}": n for n in range(1, rows)}}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
        wide = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="</s>")
        write_shards([f"w{rows - 1}"], wide, tmp_path / str(rows))
        shards = ShardSet.open(tmp_path / str(rows), wide)
        assert shards.tokens(0, 2).tolist() == [rows - 1, 0]  # no bos: the tokenizer puts none
        assert shards.tokens(0, 2).dtype.itemsize == width


def test_encoding_does_not_meet_the_settings_of_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer)
    tokenizer(["the", "the cat"], padding=True, truncation=True, max_length=2)
    (batch,) = encoder.batches(["the cat saw the dog", "a", ""])
    assert tokenizer.backend_tokenizer.padding and tokenizer.backend_tokenizer.truncation["max_length"] == 2
    expected = [*tokenizer("the cat saw the dog").input_ids, 2, *tokenizer("a").input_ids, 2]
    assert batch.ids.tolist() == expected and batch.lengths.sum() == len(expected) > 6
    assert batch.sizes.tolist() == [19, 1]


def test_progress_counts_up_to_the_summary(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    seen: list[ShardProgress] = []
    big = prose(9, length=60_000)  # about 2.5 MB: several batches
    summary = write_shards(big, tokenizer, tmp_path, on_progress=seen.append)
    assert len(seen) >= 2 and all(a.raw_bytes < b.raw_bytes for a, b in zip(seen, seen[1:], strict=False))
    assert (seen[-1].documents, seen[-1].raw_bytes, seen[-1].tokens) == (9, summary.raw_bytes, summary.tokens)
    assert seen[-1].mb_per_s == pytest.approx(summary.mb_per_s, rel=0.5)


# What cannot be trusted ---------------------------------------------------------------------------------------------


def shard(folder: Path, number: int = 1) -> Path:
    return sorted(folder.glob("shard-*.bin"))[number]


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def with_manifest(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        for key, value in changes.items():
            if value is None:
                del manifest[key]
            else:
                manifest[key] = value
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


def foreign(path: Path) -> None:
    """Another tokenizer's shard under our name, in every other respect sound."""
    rewrite(path, lambda data: data[:24] + b"f" * 64 + data[88:])


AGAIN = "Next: delete the folder and run the command that wrote it again"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: rewrite(shard(f), lambda d: d[:-2]),
                  rf"a shard is truncated \(1,126 bytes\): .*00001.bin'. Allowed: 1,128 bytes. {AGAIN}"),
    "in the header": (lambda f: rewrite(shard(f), lambda d: d[:5]), rf"a shard is truncated \(5 bytes\).*{AGAIN}"),
    "emptied": (lambda f: rewrite(shard(f), lambda d: b""), rf"a shard is truncated \(0 bytes\).*{AGAIN}"),
    "longer": (lambda f: rewrite(shard(f), lambda d: d + b"12"), r"a shard is longer than it was written \(1,130 by"),
    "foreign magic": (lambda f: rewrite(shard(f), lambda d: b"NUMPYNPY" + d[8:]),
                      r"not a shard of Cairn \(foreign header\): .*Allowed: a file that begins with CAIRNTOK."),
    "other count": (lambda f: rewrite(shard(f), lambda d: d[:16] + b"\x07" + d[17:]), "header of a shard differs"),
    "other tokenizer": (lambda f: foreign(shard(f)), "made with another tokenizer than its manifest says"),
    "one bit": (lambda f: rewrite(shard(f), lambda d: d[:-1] + bytes([d[-1] ^ 1])),
                rf"content of a shard has changed \(its SHA-256 differs from the manifest\): .*00001.bin.*{AGAIN}"),
    "gone": (lambda f: shard(f).unlink(), rf"a shard is missing: .*00001.bin'. {AGAIN}"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(),
                    "half-written shards: manifest.json, which is written last, is not there: .*interrupted again"),
    "not JSON": (lambda f: rewrite(f / "manifest.json", lambda d: d[: len(d) // 2]), "manifest cannot be read"),
    "other format": (with_manifest(format="webdataset"), "manifest is not one of Cairn's shards"),
    "other version": (with_manifest(version=99), rf"shards of another format version: 99. Allowed: 1. {AGAIN}"),
    "lacks a key": (with_manifest(bytes_per_id=None), r"manifest is incomplete \(lacks bytes_per_id\)"),
    "lists nothing": (with_manifest(shards=[]), r"manifest is incomplete \(lacks facts about shards\)"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_and_writing_again_repairs(
    whole: Path, tokenizer: PreTrainedTokenizerFast, damage: str
) -> None:
    before = ShardSet.open(whole, tokenizer).fingerprint
    harm, message = DAMAGE[damage]
    harm(whole)
    with pytest.raises(ShardError, match=message) as caught:
        ShardSet.open(whole, tokenizer)
    assert str(whole) in str(caught.value.value) or damage == "other version"
    write_shards(prose(50), tokenizer, whole, shard_tokens=500)
    assert ShardSet.open(whole, tokenizer).fingerprint == before


def test_without_verify_content_is_not_read_but_sizes_are(whole: Path) -> None:
    rewrite(shard(whole), lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    assert len(ShardSet.open(whole, verify=False)) > 0
    rewrite(shard(whole), lambda data: data[:-1])
    with pytest.raises(ShardError, match="truncated"):
        ShardSet.open(whole, verify=False)


def test_folders_that_are_not_shards(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no such folder of shards: .*/nowhere'. Next: check the path"):
        ShardSet.open(tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"not a folder of shards \(no manifest.json\)"):
        ShardSet.open(tmp_path)


def test_another_tokenizer_is_refused_and_its_fingerprint_is_enough(whole: Path) -> None:
    other = train_bpe(["something else entirely"] * 9, 320)
    for wanted in (other, tokenizer_fingerprint(other)):
        with pytest.raises(TokenizerError, match=r"shards in .*set were made with another tokenizer: .*Next: use the"):
            ShardSet.open(whole, wanted)


def test_tokenizers_that_cannot_make_shards_and_empty_streams(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError, match="not a fast tokenizer: object"):
        write_shards(["x"], object(), tmp_path)
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(TokenizerError, match="no eos token: documents could not be told apart"):
        write_shards(["x"], endless, tmp_path)
    with pytest.raises(DataError, match="there is no document to write"):
        write_shards(["", ""], tokenizer, tmp_path / "empty")
    with pytest.raises(DataError, match="shard_tokens is too small: 0"):
        write_shards(["x"], tokenizer, tmp_path / "zero", shard_tokens=0)
    assert not (tmp_path / "empty" / "manifest.json").exists()


def test_a_failed_rewrite_leaves_the_older_set_whole(whole: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    before = ShardSet.open(whole).fingerprint

    def breaking() -> Any:
        yield from prose(14, length=20_000, seed=1)
        raise DataError("the source broke")

    with pytest.raises(DataError, match="the source broke"):
        write_shards(breaking(), tokenizer, whole, shard_tokens=50_000)
    assert ShardSet.open(whole).fingerprint == before and list(whole.glob("shard-001-*"))
    write_shards(prose(5), tokenizer, whole)
    assert len(list(whole.glob("shard-*"))) == 1  # leftovers of both are gone


def test_full_disk_is_a_storage_error_and_loses_nothing(
    tokenizer: PreTrainedTokenizerFast, small_disk: Path
) -> None:
    write_shards(prose(5), tokenizer, small_disk / "set")
    before = ShardSet.open(small_disk / "set").fingerprint
    with pytest.raises(StorageError, match="no space left on the disk: .*free some space"):
        write_shards(prose(9, length=60_000), tokenizer, small_disk / "set", shard_tokens=40_000)
    assert ShardSet.open(small_disk / "set").fingerprint == before
