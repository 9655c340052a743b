"""Several sources woven into one token stream in which any stretch has the wanted shares.

    files, hub ─ cut into pieces ─ encode ─> staged ids per source ─┐
    generator  ─ encode as much as its share needs ─> staged ids ───┴─ weave by share ─> shards

A piece is a document, or a part of a long one cut at a paragraph end (each with bos and eos), so that a book of a
million tokens does not fill a whole stretch. Staging makes the sizes known before shares are given out, makes repeated
passes cheap, and is what an interrupted call goes on from.
"""

from __future__ import annotations

import heapq
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cairn.data.corpora import SourceConfig, cut_document, iterate, source_files
from cairn.data.encoding import MAX_BATCH_CHARS, EncodedBatch, Encoder
from cairn.data.shards import Callback, ShardProgress, ShardSet, ShardSummary, SourceCount, StreamWriter
from cairn.errors import ArtifactError, ConfigError, DataError, ShardError
from cairn.files import atomic_file, sha256_file, sha256_json, write_json

__all__ = ["write_mixture"]

_WORK = ".work"
_HOPELESS = 10_000  # documents rejected in a row, none kept
_VERSION = 1  # of cutting and weaving: a change there makes older sets stale


def write_mixture(
    sources: list[SourceConfig],
    tokenizer: Any,
    out: str | Path,
    seed: int,
    total_tokens: int | None = None,
    *,
    root: str | Path | None = None,
    shard_tokens: int = 2**24,
    piece_chars: int = 8192,
    on_progress: Callback | None = None,
    reject: Callable[[str], Any] | None = None,
    reject_key: str = "",
) -> ShardSummary:
    """Weaves several sources into one stream in which any stretch has the wanted shares of tokens.

    Sources with a weight get that share. The others divide the rest in proportion to tokens x repeat. If all have
    weights, these are taken relative to their sum. Each pass over a source is shuffled anew from the seed; the next
    piece always comes from the source that is furthest behind its share, so shares hold to within one piece.

    Args:
        sources: what to mix, names unique.
        tokenizer: fast tokenizer with an eos.
        out: folder; a whole set of the same mixture is kept and its summary returned, a damaged one is repaired.
        seed: of the shuffles and the generators.
        total_tokens: length wanted (exceeded by less than one piece per source); finite sources are repeated until it
            is met. None: sources without a weight are used tokens x repeat times, which decides the length; where all
            have weights, the first finite source to be used up does.
        root: folder that relative paths start from.
        shard_tokens: tokens per file.
        piece_chars: longest piece of a document in characters (8192 is about 2,000 tokens).
        on_progress: called after each encoded batch.
        reject: a piece for which this is true is left out (overlap with an evaluation set) and counted per source.
        reject_key: names what `reject` does, as part of what makes two mixtures the same.

    Raises:
        ConfigError: no source, names repeat, weights leave no room, or nothing decides the length.
        DataError: a source cannot be read, or every piece of one was rejected.
        ShardError: the folder holds a sound set of another mixture.
        TokenizerError: the tokenizer is not a fast one or has no eos.
        StorageError: the disk is full or the folder may not be written.
    """
    _check(sources, total_tokens, piece_chars)
    out = Path(out)
    encoder = Encoder(tokenizer)
    origins = [[*_origin(source, encoder, root, piece_chars, seed), reject_key] for source in sources]
    shares = [[source.weight, source.repeat] for source in sources]
    key = sha256_json([_VERSION, origins, shares, seed, total_tokens, shard_tokens])
    kept = _already_written(out, key)
    if kept is not None:
        return kept
    stager = _Stager(out / _WORK, encoder, on_progress, reject)
    with StreamWriter(out, encoder, shard_tokens) as writer:
        staged: dict[str, _Staged] = {}
        for source, origin in zip(sources, origins, strict=True):
            if source.generator is None:
                staged[source.name] = stager.stage(source, origin, _pieces(source, root, seed, piece_chars))
        budgets = _budgets(sources, {name: len(part.ids) for name, part in staged.items()}, total_tokens)
        for source, origin in zip(sources, origins, strict=True):
            if source.generator is not None:
                texts, need = _pieces(source, root, seed, piece_chars), budgets[source.name]
                staged[source.name] = stager.stage(source, [origin, need], texts, need)
        counts = {source.name: SourceCount(licence=source.licence) for source in sources}
        for name, ids, size in _weave(sources, staged, budgets, seed):
            writer.add(ids)
            counts[name].documents += 1
            counts[name].raw_bytes += size
            counts[name].tokens += len(ids)
        for name, count in counts.items():
            count.passes = round(count.tokens / len(staged[name].ids), 4)
            count.rejected = staged[name].rejected
        settings = {"key": key, "seed": seed, "total_tokens": total_tokens, "piece_chars": piece_chars,
                    "sources": [source.model_dump(mode="json") for source in sources]}
        summary = writer.finish(counts, mb_per_s=stager.mb_per_s, settings=settings)
    shutil.rmtree(out / _WORK, ignore_errors=True)
    return summary


def _check(sources: list[SourceConfig], total_tokens: int | None, piece_chars: int) -> None:
    faults = []
    names = [source.name for source in sources]
    if not names:
        faults.append("there is no source, allowed: at least one")
    faults += [f"{name}: name given twice" for name in sorted({name for name in names if names.count(name) > 1})]
    given = sum(source.weight for source in sources if source.weight is not None)
    if any(source.weight is None for source in sources) and given >= 1:
        faults.append(f"weights add up to {given:g} and leave nothing for the sources without one, allowed: below 1")
    if total_tokens is not None and total_tokens < 1:
        faults.append(f"total_tokens: {total_tokens}, allowed: 1 or more")
    if total_tokens is None and names and all(source.generator for source in sources):
        faults.append("total_tokens: nothing decides the length, since generators are infinite; give it")
    if piece_chars < 16:
        faults.append(f"piece_chars: {piece_chars}, allowed: 16 or more")
    if faults:
        raise ConfigError("sources", faults)


def _pieces(source: SourceConfig, root: str | Path | None, seed: int, piece_chars: int) -> Iterator[str]:
    for text in iterate(source, root=root, seed=seed):
        yield from cut_document(text, piece_chars)


def _origin(source: SourceConfig, encoder: Encoder, root: str | Path | None, piece_chars: int, seed: int) -> list[Any]:
    """Returns what the staged ids of a source depend on: files by content, a generator by its first texts."""
    said = source.model_dump(mode="json", exclude={"path", "weight", "repeat", "licence"})
    if source.generator is not None:
        seen: list[Any] = [seed, list(itertools.islice(iterate(source, seed=seed), 50))]
    else:
        seen = [[file.name, sha256_file(file)] for file in source_files(source, root)]
    return [said, seen, encoder.fingerprint, piece_chars]


def _already_written(out: Path, key: str) -> ShardSummary | None:
    if not (out / "manifest.json").exists():
        return None
    try:
        found = ShardSet.open(out)
    except ArtifactError:
        return None  # damaged: writing again repairs it
    if found.manifest["settings"].get("key") != key:
        raise ShardError(
            "the shards there were made from other texts, settings or another tokenizer", value=str(out),
            allowed="a new folder, or shards of the same mixture",
            next="choose another folder, or delete this one to write it anew",
        )
    return found.summary


@dataclass(frozen=True)
class _Staged:
    """All pieces of one source: flat ids, start, length and raw bytes of each piece, and how many were rejected."""

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray
    rejected: int


class _Stager:
    """Encodes sources into a work folder, and takes up what an earlier call finished there."""

    def __init__(
        self, folder: Path, encoder: Encoder, on_progress: Callback | None, reject: Callable[[str], Any] | None
    ) -> None:
        self._folder = folder
        self._reject = reject
        self._rejected = 0
        self._encoder = encoder
        self._on_progress = on_progress
        self._documents = self._bytes = self._tokens = 0
        self._seconds = 0.0

    @property
    def mb_per_s(self) -> float:
        return self._bytes / 1e6 / self._seconds if self._seconds else 0.0

    def stage(self, source: SourceConfig, origin: Any, texts: Iterable[str], need: int | None = None) -> _Staged:
        """Returns the encoded pieces of a source, at least `need` tokens of them if the source is infinite."""
        folder = self._folder / source.name
        key = sha256_json(origin)
        try:
            whole = json.loads((folder / "whole.json").read_text())
        except (OSError, ValueError):
            whole = {}
        if whole.get("key") != key:
            self._rejected = 0
            self._encode(folder, source.name, self._kept(source.name, texts), need)
            whole = {"key": key, "rejected": self._rejected}
            write_json(folder / "whole.json", whole)
        lengths, sizes = np.load(folder / "pieces.npy")
        ids = np.memmap(folder / "ids.bin", dtype=self._encoder.dtype, mode="r")
        return _Staged(ids, np.cumsum(lengths) - lengths, lengths, sizes, whole["rejected"])

    def _kept(self, name: str, texts: Iterable[str]) -> Iterator[str]:
        kept = 0
        for text in texts:
            if self._reject is None or not self._reject(text):
                kept += 1
                yield text
                continue
            self._rejected += 1
            if not kept and self._rejected >= _HOPELESS:
                break  # an infinite source would never end
        if not kept:
            raise DataError(f"source {name}: every document was rejected", value=self._rejected,
                            next="check what is kept out of training")

    def _encode(self, folder: Path, name: str, texts: Iterable[str], need: int | None) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        lengths, sizes, tokens = [], [], 0
        started = time.perf_counter()
        before = self._seconds
        with atomic_file(folder / "ids.bin") as temporary, open(temporary, "wb") as file:
            # A small need of an infinite source should not cost a whole batch; a token is more than two characters.
            each = MAX_BATCH_CHARS if need is None else min(2 * need, MAX_BATCH_CHARS)
            for batch in self._encoder.batches(texts, each):
                file.write(batch.ids.tobytes())
                lengths.append(batch.lengths)
                sizes.append(batch.sizes)
                tokens += len(batch.ids)
                self._seconds = before + time.perf_counter() - started
                self._report(name, batch)
                if need is not None and tokens >= need:
                    break
        with atomic_file(folder / "pieces.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.stack([np.concatenate(lengths), np.concatenate(sizes)]))

    def _report(self, name: str, batch: EncodedBatch) -> None:
        self._documents += len(batch.lengths)
        self._bytes += int(batch.sizes.sum())
        self._tokens += len(batch.ids)
        if self._on_progress is not None:
            self._on_progress(ShardProgress(name, self._documents, self._bytes, self._tokens, self._seconds))


def _budgets(sources: list[SourceConfig], tokens: dict[str, int], total: int | None) -> dict[str, int]:
    """Returns how many tokens each source gives to the stream."""
    sizes = {source.name: tokens[source.name] * source.repeat for source in sources if source.name in tokens}
    weights = {source.name: source.weight for source in sources if source.weight is not None}
    given = sum(weights.values())
    by_size = {name: size for name, size in sizes.items() if name not in weights}
    if by_size:
        rest = 1.0 - given
        everything = sum(by_size.values())
        shares = {**weights, **{name: rest * size / everything for name, size in by_size.items()}}
        length = total if total is not None else everything / rest
    else:
        shares = {name: weight / given for name, weight in weights.items()}
        length = total if total is not None else min(size / shares[name] for name, size in sizes.items())
    return {source.name: max(1, round(shares[source.name] * length)) for source in sources}


def _weave(
    sources: list[SourceConfig], staged: dict[str, _Staged], budgets: dict[str, int], seed: int
) -> Iterator[tuple[str, np.ndarray, int]]:
    """Yields (source, ids, raw bytes) piece by piece, always from the source furthest behind its budget."""
    order = [_shuffled(len(staged[source.name].lengths), seed, index) for index, source in enumerate(sources)]
    written = [0] * len(sources)
    behind = [(0.0, index) for index in range(len(sources))]
    while behind:
        _, index = heapq.heappop(behind)
        name = sources[index].name
        part, piece = staged[name], next(order[index])
        start, length = int(part.starts[piece]), int(part.lengths[piece])
        yield name, part.ids[start : start + length], int(part.sizes[piece])
        written[index] += length
        if written[index] < budgets[name]:
            heapq.heappush(behind, (written[index] / budgets[name], index))


def _shuffled(count: int, seed: int, index: int) -> Iterator[int]:
    """Yields 0..count-1 in a new order on every pass, for ever."""
    for turn in itertools.count():
        yield from np.random.default_rng([seed, index, turn]).permutation(count).tolist()
