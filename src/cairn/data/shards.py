"""Token shards: the memory-mapped stream of ids that a base is pretrained on.

    documents ── Encoder ──> bos ids eos bos ids eos ... ── StreamWriter ──> shard-000-00000.bin ...
                                                                             manifest.json (last)

    shard file   128 byte header: magic, version, bytes per id, count, tokenizer fingerprint; then the ids

The manifest is written last and names every file with its SHA-256: without it, or where anything differs from it,
`ShardSet.open` refuses. Writing again repairs. A set that is replaced stays whole until the new manifest is in place.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cairn.data.encoding import Encoder
from cairn.errors import DataError, ShardError, TokenizerError, storage_error
from cairn.files import atomic_file, sha256_file, sha256_json, write_json
from cairn.models.tokenization import tokenizer_fingerprint

__all__ = [
    "Callback",
    "ShardProgress",
    "ShardSet",
    "ShardSummary",
    "SourceCount",
    "StreamWriter",
    "write_shards",
]

_MAGIC = b"CAIRNTOK"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQ64s")
_HEADER_BYTES = 128
_MANIFEST = "manifest.json"
_KEYS = ("generation", "tokenizer", "vocab_size", "bytes_per_id", "documents", "raw_bytes", "tokens", "sources",
         "settings", "shards")
_AGAIN = "delete the folder and run the command that wrote it again (cairn pretrain RECIPE)"


@dataclass(frozen=True)
class ShardProgress:
    """How far the encoding is; given to `on_progress` after every batch of about 1 MB."""

    source: str
    documents: int
    raw_bytes: int
    tokens: int
    seconds: float

    @property
    def mb_per_s(self) -> float:
        """Raw text encoded per second, in MB (10^6 bytes), reading and decompression included."""
        return self.raw_bytes / 1e6 / max(self.seconds, 1e-9)


Callback = Callable[[ShardProgress], None]


@dataclass
class SourceCount:
    """What one source gave to the stream; a repeated document counts again."""

    documents: int = 0
    raw_bytes: int = 0
    tokens: int = 0
    passes: float = 1.0
    licence: str = ""
    rejected: int = 0


@dataclass(frozen=True)
class ShardSummary:
    """What was written; `mb_per_s` is raw text encoded per second in this call (0.0 if nothing had to be)."""

    folder: str
    shards: int
    documents: int
    raw_bytes: int
    tokens: int
    mb_per_s: float
    sources: dict[str, SourceCount] = field(default_factory=dict)

    @property
    def bytes_per_token(self) -> float:
        """Raw UTF-8 bytes per token of the stream, bos and eos counted as tokens."""
        return self.raw_bytes / max(self.tokens, 1)


class StreamWriter:
    """Cuts a stream of ids into shard files and writes the manifest last; use as a context manager.

    Files get a new generation number, so that an older set in the folder stays whole until `finish`.

    Raises:
        StorageError: the disk is full or the folder may not be written.
    """

    def __init__(self, out: str | Path, encoder: Encoder, shard_tokens: int = 2**24) -> None:
        if shard_tokens < 1:
            raise DataError("shard_tokens is too small", value=shard_tokens, allowed="1 or more")
        self.out = Path(out)
        self._encoder = encoder
        self._shard_tokens = shard_tokens
        self._buffer: list[np.ndarray] = []
        self._buffered = 0
        self._entries: list[dict[str, Any]] = []
        self._generation = 0

    def __enter__(self) -> StreamWriter:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.out) from error
        try:
            self._generation = _read_manifest(self.out)["generation"] + 1
        except ShardError:
            pass  # nothing whole to protect
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._buffer = []

    def add(self, ids: np.ndarray) -> None:
        """Appends ids `[tokens]` to the stream; a full shard goes to the disk."""
        self._buffer.append(ids)
        self._buffered += len(ids)
        if self._buffered >= self._shard_tokens:
            stream = np.concatenate(self._buffer)
            whole = len(stream) // self._shard_tokens * self._shard_tokens
            for start in range(0, whole, self._shard_tokens):
                self._write(stream[start : start + self._shard_tokens])
            self._buffer, self._buffered = [stream[whole:]], len(stream) - whole

    def finish(
        self, sources: dict[str, SourceCount], *, mb_per_s: float, settings: dict[str, Any] | None = None
    ) -> ShardSummary:
        """Writes the last shard and the manifest, then deletes files of an older set.

        Args:
            sources: counts per source.
            mb_per_s: raw text encoded per second, for the summary.
            settings: what made the stream, kept in the manifest.

        Raises:
            DataError: the stream is empty.
        """
        if self._buffered:
            self._write(np.concatenate(self._buffer))
        if not self._entries:
            raise DataError("there is no document to write", value=str(self.out), allowed="at least one document")
        manifest = {
            "format": "cairn-shards",
            "version": _VERSION,
            "generation": self._generation,
            "tokenizer": self._encoder.fingerprint,
            "vocab_size": self._encoder.vocab_size,
            "bytes_per_id": self._encoder.dtype.itemsize,
            "documents": sum(count.documents for count in sources.values()),
            "raw_bytes": sum(count.raw_bytes for count in sources.values()),
            "tokens": sum(entry["tokens"] for entry in self._entries),
            "sources": {name: asdict(count) for name, count in sources.items()},
            "settings": settings or {},
            "shards": self._entries,
        }
        write_json(self.out / _MANIFEST, manifest)
        current = {entry["file"] for entry in self._entries}
        for file in self.out.glob("shard-*.bin"):
            if file.name not in current:
                with suppress(OSError):  # a leftover costs space only; the new set is already in place
                    file.unlink()
        return _summary(self.out, manifest, mb_per_s)

    def _write(self, ids: np.ndarray) -> None:
        name = f"shard-{self._generation:03d}-{len(self._entries):05d}.bin"
        head = _HEADER.pack(_MAGIC, _VERSION, ids.itemsize, len(ids), self._encoder.fingerprint.encode())
        data = head.ljust(_HEADER_BYTES, b"\0") + ids.tobytes()
        with atomic_file(self.out / name) as temporary:
            temporary.write_bytes(data)
        self._entries.append({"file": name, "tokens": len(ids), "sha256": hashlib.sha256(data).hexdigest()})


def write_shards(
    documents: Iterable[str],
    tokenizer: Any,
    out: str | Path,
    shard_tokens: int = 2**24,
    on_progress: Callback | None = None,
    *,
    name: str = "documents",
    licence: str = "",
) -> ShardSummary:
    """Encodes documents in their order, each as bos + ids + eos, into shards.

    Args:
        documents: texts; empty ones are left out.
        tokenizer: fast tokenizer with an eos (bos is written if it puts one by itself).
        out: folder; an older set in it is replaced.
        shard_tokens: tokens per file.
        on_progress: called after each batch.
        name: how the manifest calls the one source.
        licence: carried into the manifest.

    Raises:
        DataError: no document at all.
        TokenizerError: the tokenizer is not a fast one or has no eos.
        StorageError: the disk is full or the folder may not be written.
    """
    encoder = Encoder(tokenizer)
    count = SourceCount(licence=licence)
    started = time.perf_counter()
    with StreamWriter(out, encoder, shard_tokens) as writer:
        for batch in encoder.batches(documents):
            writer.add(batch.ids)
            count.documents += len(batch.lengths)
            count.raw_bytes += int(batch.sizes.sum())
            count.tokens += len(batch.ids)
            if on_progress is not None:
                seconds = time.perf_counter() - started
                on_progress(ShardProgress(name, count.documents, count.raw_bytes, count.tokens, seconds))
        mb_per_s = count.raw_bytes / 1e6 / max(time.perf_counter() - started, 1e-9)
        return writer.finish({name: count}, mb_per_s=mb_per_s)


class ShardSet:
    """A verified, memory-mapped token stream; `len()` is its number of tokens. Made by `ShardSet.open`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], parts: list[np.ndarray]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    @classmethod
    def open(cls, folder: str | Path, tokenizer: Any = None, *, verify: bool = True) -> ShardSet:
        """Opens a folder of shards and refuses whatever cannot be trusted.

        Args:
            folder: where the shards are.
            tokenizer: the tokenizer, or its fingerprint, that the ids must come from; None: not compared.
            verify: read every byte and compare hashes (about 1 GB/s); False checks headers and sizes only.

        Raises:
            ShardError: no folder, no manifest (half-written), a file missing, truncated, foreign, or changed.
            TokenizerError: the shards were made with another tokenizer.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        if tokenizer is not None:
            wanted = tokenizer if isinstance(tokenizer, str) else tokenizer_fingerprint(tokenizer)
            if wanted != manifest["tokenizer"]:
                raise TokenizerError(
                    f"the shards in {folder} were made with another tokenizer", value=manifest["tokenizer"][:16],
                    allowed=f"the fingerprint of this tokenizer, {wanted[:16]}",
                    next="use the tokenizer that made them, or write the shards again with this one in another folder",
                )
        parts = [_map_shard(folder / entry["file"], entry, manifest, verify) for entry in manifest["shards"]]
        return cls(folder, manifest, parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 of the tokenizer that made the ids."""
        return str(self.manifest["tokenizer"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of all shards: what a run folder records as its data."""
        return sha256_json([entry["sha256"] for entry in self.manifest["shards"]])

    @property
    def vocab_size(self) -> int:
        """Rows of the tokenizer's vocabulary; every id is below it."""
        return int(self.manifest["vocab_size"])

    @property
    def summary(self) -> ShardSummary:
        """Counts per source and in all, as written in the manifest."""
        return _summary(self.folder, self.manifest, 0.0)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Returns the ids in [start, stop), a view inside one shard, a copy across several.

        Raises:
            IndexError: the range does not lie inside the stream.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens[{start}:{stop}] of a stream of {len(self)}")
        first = int(np.searchsorted(self._ends, start, side="right"))
        pieces = []
        while start < stop:
            begin = int(self._ends[first]) - len(self._parts[first])
            end = min(stop, int(self._ends[first]))
            pieces.append(self._parts[first][start - begin : end - begin])
            start, first = end, first + 1
        if not pieces:
            return self._parts[0][:0]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _summary(folder: Path, manifest: dict[str, Any], mb_per_s: float) -> ShardSummary:
    sources = {name: SourceCount(**count) for name, count in manifest["sources"].items()}
    return ShardSummary(str(folder), len(manifest["shards"]), manifest["documents"], manifest["raw_bytes"],
                        manifest["tokens"], mb_per_s, sources)


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ShardError("no such folder of shards", value=str(folder),
                         next="check the path, or write the shards first (cairn pretrain RECIPE)")
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        begun = any(entry.name.startswith(("shard-", ".shard-", ".work")) for entry in folder.iterdir())
        if not begun:
            raise ShardError("not a folder of shards (no manifest.json)", value=str(folder),
                             next="check the path, or write the shards first (cairn pretrain RECIPE)") from None
        raise ShardError("half-written shards: manifest.json, which is written last, is not there", value=str(folder),
                         next="run the command that was interrupted again (cairn pretrain RECIPE)") from None
    except (OSError, ValueError) as error:
        raise ShardError(f"manifest cannot be read ({error})", value=str(path), next=_AGAIN) from None
    if not isinstance(manifest, dict) or manifest.get("format") != "cairn-shards":
        raise ShardError("manifest is not one of Cairn's shards", value=str(path), next="check the path")
    if manifest.get("version") != _VERSION:
        raise ShardError("shards of another format version", value=manifest.get("version"), allowed=str(_VERSION),
                         next=_AGAIN)
    lacking = [key for key in _KEYS if key not in manifest]
    if lacking or not manifest["shards"] or any({"file", "tokens", "sha256"} - set(e) for e in manifest["shards"]):
        raise ShardError(f"manifest is incomplete (lacks {', '.join(lacking) or 'facts about shards'})",
                         value=str(path), next=_AGAIN)
    return manifest


def _map_shard(path: Path, entry: dict[str, Any], manifest: dict[str, Any], verify: bool) -> np.ndarray:
    """Checks one shard file against the manifest and maps its ids."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        raise ShardError("a shard is missing", value=str(path), next=_AGAIN) from None
    except OSError as error:
        raise ShardError(f"a shard cannot be read ({error.strerror or error})", value=str(path), next=_AGAIN) from None
    width = manifest["bytes_per_id"]
    if head[: len(_MAGIC)] != _MAGIC[: len(head)]:
        raise ShardError("not a shard of Cairn (foreign header)", value=str(path),
                         allowed=f"a file that begins with {_MAGIC.decode()}", next=_AGAIN)
    wanted = _HEADER_BYTES + entry["tokens"] * width
    if size != wanted:
        kind = "truncated" if size < wanted else "longer than it was written"
        raise ShardError(f"a shard is {kind} ({size:,} bytes)", value=str(path), allowed=f"{wanted:,} bytes",
                         next=_AGAIN)
    _, version, found_width, count, fingerprint = _HEADER.unpack(head[: _HEADER.size])
    if (version, found_width, count) != (_VERSION, width, entry["tokens"]):
        raise ShardError("header of a shard differs from the manifest", value=str(path), next=_AGAIN)
    if fingerprint.decode("ascii", errors="replace") != manifest["tokenizer"]:
        raise ShardError("a shard was made with another tokenizer than its manifest says", value=str(path), next=_AGAIN)
    if verify and sha256_file(path) != entry["sha256"]:
        raise ShardError("content of a shard has changed (its SHA-256 differs from the manifest)", value=str(path),
                         next=_AGAIN)
    return np.memmap(path, dtype=f"<u{width}", mode="r", offset=_HEADER_BYTES)
