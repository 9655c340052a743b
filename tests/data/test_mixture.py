"""A mixture has the wanted shares in any stretch, loses no document, and survives being killed at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from cairn.data.corpora import SourceConfig
from cairn.data.mixture import write_mixture
from cairn.data.shards import ShardSet, write_shards
from cairn.errors import ConfigError, DataError, ShardError
from cairn.files import atomic_file
from cairn.models.tokenization import train_bpe

WORDS = "the a cat dog saw ran home with red box and little tree by old river hill".split()


def prose(count: int, length: int = 30, seed: int = 0, mark: str = "") -> list[str]:
    rng = random.Random(seed)
    return [f"{mark} " + " ".join(rng.choice(WORDS) for _ in range(length)) + f" {n}." for n in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe([*prose(300), "alpha beta gamma " * 50], 512)


def source(folder: Path, name: str, documents: list[str], **settings: Any) -> SourceConfig:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return SourceConfig(name=name, licence="CC0", path=str(path), **settings)


def stream_texts(shards: ShardSet, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    ids = shards.tokens(0, len(shards)).tolist()
    assert ids[0] == 1 and ids[-1] == 2
    text = tokenizer.decode(ids)
    return text.removeprefix("<|bos|>").removesuffix("<|eos|>").split("<|eos|><|bos|>")


def shard(folder: Path) -> Path:
    return sorted(folder.glob("shard-*.bin"))[0]



def shares(shards: ShardSet, start: int, stop: int, marks: dict[str, int]) -> dict[str, float]:
    """Share of tokens per source in a stretch; each document begins with its source's mark."""
    ids = shards.tokens(start, stop)
    begins = np.flatnonzero(ids == 1)
    lengths = np.diff(np.append(begins, len(ids)))
    kinds = ids[begins + 1]
    total = lengths.sum()
    return {name: float(lengths[kinds == mark].sum() / total) for name, mark in marks.items()}


def marked(folder: Path, tokenizer: PreTrainedTokenizerFast, **settings: dict[str, Any]) -> tuple[list, dict]:
    counts = {"alpha": 400, "beta": 100, "gamma": 30}
    names = list(settings)
    sources = [
        source(folder, name, prose(counts[name], length=40 if name == "alpha" else 15, mark=name), **settings[name])
        for name in names
    ]
    first = {name: tokenizer(name, add_special_tokens=False).input_ids[0] for name in names}
    assert len(set(first.values())) == len(names)
    return sources, first


def test_shares_hold_within_one_percent_overall_and_in_any_stretch(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sources, marks = marked(tmp_path, tokenizer, alpha={"weight": 0.7}, beta={"weight": 0.2}, gamma={"weight": 0.1})
    summary = write_mixture(sources, tokenizer, tmp_path / "out", 0, 60_000, shard_tokens=2**14)
    wanted = {"alpha": 0.7, "beta": 0.2, "gamma": 0.1}
    for name, share in wanted.items():
        assert summary.sources[name].tokens / summary.tokens == pytest.approx(share, abs=0.01)
    assert 60_000 <= summary.tokens < 60_500
    shards = ShardSet.open(tmp_path / "out", tokenizer)
    for start in range(0, 50_000, 10_000):
        assert shares(shards, start, start + 10_000, marks) == pytest.approx(wanted, abs=0.01)


def test_without_weights_and_length_every_document_appears_exactly_repeat_times(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sources, _ = marked(tmp_path, tokenizer, alpha={}, gamma={"repeat": 3})
    summary = write_mixture(sources, tokenizer, tmp_path / "out", 0)
    texts = stream_texts(ShardSet.open(tmp_path / "out"), tokenizer)
    assert sorted(texts) == sorted([*prose(400, 40, mark="alpha"), *prose(30, 15, mark="gamma") * 3])
    assert texts[:30] != sorted(texts)[:30]
    assert (summary.sources["alpha"].passes, summary.sources["gamma"].passes) == (1.0, 3.0)


def test_a_generator_fills_its_share_and_files_the_rest(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    sources, _ = marked(tmp_path, tokenizer, alpha={}, beta={})
    made = SourceConfig(name="made", licence="own", generator="lookup", weight=0.3)
    summary = write_mixture([*sources, made], tokenizer, tmp_path / "out", 0, 100_000)
    count = summary.sources
    assert count["made"].tokens / summary.tokens == pytest.approx(0.3, abs=0.01)
    assert count["alpha"].tokens / count["beta"].tokens == pytest.approx(
        sum(len(tokenizer(t).input_ids) + 1 for t in prose(400, 40, mark="alpha"))
        / sum(len(tokenizer(t).input_ids) + 1 for t in prose(100, 15, mark="beta")), rel=0.02,
    )  # fmt: skip
    assert count["made"].passes <= 1.0 and count["alpha"].passes > 1.0
    once = write_mixture([*sources, made], tokenizer, tmp_path / "once", 0)
    assert once.sources["alpha"].passes == 1.0
    # the stream is short: the last generated document may stand out over its share
    assert once.sources["made"].tokens / once.tokens == pytest.approx(0.3, abs=0.02)


def test_all_weighted_without_length_ends_when_the_first_source_is_used_up(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sources, _ = marked(tmp_path, tokenizer, alpha={"weight": 1}, gamma={"weight": 1})
    summary = write_mixture(sources, tokenizer, tmp_path / "out", 0)
    assert summary.sources["gamma"].passes == 1.0 and summary.sources["alpha"].passes < 0.2


def test_a_long_book_is_cut_so_that_it_does_not_fill_a_stretch(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    book = "\n\n".join(f"alpha {text}" for text in prose(600, 20))
    notes = prose(200, mark="beta")
    sources = [source(tmp_path, "book", [book], weight=0.5), source(tmp_path, "beta", notes, weight=0.5)]
    write_mixture(sources, tokenizer, tmp_path / "out", 0, 20_000, piece_chars=600)
    shards = ShardSet.open(tmp_path / "out")
    marks = {name: tokenizer(name, add_special_tokens=False).input_ids[0] for name in ("alpha", "beta")}
    for start in range(0, 15_000, 3_000):
        assert shares(shards, start, start + 3_000, marks)["alpha"] == pytest.approx(0.5, abs=0.06)
    pieces = [text for text in stream_texts(shards, tokenizer) if text.startswith("alpha")]
    assert all(piece in book for piece in pieces) and max(map(len, pieces)) <= 600


def test_the_stream_depends_on_the_seed_alone(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    sources, _ = marked(tmp_path, tokenizer, alpha={}, gamma={})
    sources.append(SourceConfig(name="made", licence="own", generator="lookup", weight=0.2))
    prints = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_mixture(sources, tokenizer, tmp_path / name, seed, 30_000)
        prints.append(ShardSet.open(tmp_path / name).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_rejected_pieces_are_left_out_and_counted(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, _ = marked(tmp_path, tokenizer, alpha={})
    summary = write_mixture(sources, tokenizer, tmp_path / "out", 0, reject=lambda t: t.endswith("7."), reject_key="7")
    texts = stream_texts(ShardSet.open(tmp_path / "out"), tokenizer)
    assert sorted(texts) == sorted(text for text in prose(400, 40, mark="alpha") if not text.endswith("7."))
    assert summary.sources["alpha"].rejected == 40
    with pytest.raises(DataError, match="source alpha: every document was rejected: 400"):
        write_mixture(sources, tokenizer, tmp_path / "none", 0, reject=bool, reject_key="all")
    endless = SourceConfig(name="made", licence="own", generator="lookup", weight=1)
    monkeypatch.setattr("cairn.data.mixture._HOPELESS", 100)
    with pytest.raises(DataError, match="source made: every document was rejected: 100"):
        write_mixture([endless], tokenizer, tmp_path / "none", 0, 100, reject=bool, reject_key="all")


def test_a_whole_set_is_kept_a_damaged_one_repaired_and_another_one_never_overwritten(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sources, _ = marked(tmp_path, tokenizer, alpha={}, gamma={})
    out = tmp_path / "out"
    first = write_mixture(sources, tokenizer, out, 0)
    before, written = ShardSet.open(out).fingerprint, shard(out).stat().st_mtime_ns
    (tmp_path / "gamma.jsonl").touch()  # same content
    again = write_mixture(sources, tokenizer, out, 0)
    assert again.mb_per_s == 0.0 and again.tokens == first.tokens and shard(out).stat().st_mtime_ns == written

    with pytest.raises(ShardError, match="made from other texts, settings or another tokenizer: .*choose another fold"):
        write_mixture(sources, tokenizer, out, 1)
    source(tmp_path, "gamma", prose(31, 15, mark="gamma"))
    with pytest.raises(ShardError, match="made from other texts"):
        write_mixture(sources, tokenizer, out, 0)
    assert ShardSet.open(out).fingerprint == before

    source(tmp_path, "gamma", prose(30, 15, mark="gamma"))
    shard(out).write_bytes(shard(out).read_bytes()[:-1])
    write_mixture(sources, tokenizer, out, 0)
    assert ShardSet.open(out, tokenizer).fingerprint == before
    assert sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("shard")) == ["manifest.json"]


def test_contradictory_mixtures_are_refused_all_faults_at_once(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    one = source(tmp_path, "one", prose(3))
    heavy = SourceConfig(name="one", licence="own", generator="lookup", weight=1)
    with pytest.raises(ConfigError) as caught:
        write_mixture([one, heavy], tokenizer, tmp_path / "out", 0, 0)
    text = str(caught.value)
    assert "one: name given twice" in text and "total_tokens: 0, allowed: 1 or more" in text
    assert "weights add up to 1 and leave nothing for the sources without one, allowed: below 1" in text
    with pytest.raises(ConfigError, match="nothing decides the length"):
        write_mixture([heavy], tokenizer, tmp_path / "out", 0)
    with pytest.raises(ConfigError, match="there is no source"):
        write_mixture([], tokenizer, tmp_path / "out", 0, 10)


# Killed in the middle -----------------------------------------------------------------------------------------------


def killed(moment: int, work: Callable[[Callable[[], None]], object]) -> None:
    """Runs `work(tick)` in a copy of this process that is killed, as by `kill -9`, at the given tick."""
    child = os.fork()
    if child == 0:
        ticks = iter(range(1, moment + 1))

        def tick() -> None:
            if next(ticks) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            work(tick)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def half_written(
    write: Callable[..., object], tick: Callable[[], None], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls `write`, with a tick in the middle of each file of the named step."""
    if step == "staging":
        write(on_progress=lambda progress: tick())
        return
    real = atomic_file

    @contextmanager
    def ticking(path: str | Path) -> Iterator[Path]:
        with real(path) as temporary:
            yield temporary
            tick()  # written, but not yet in place

    monkeypatch.setattr("cairn.data.shards.atomic_file" if step == "shards" else "cairn.files.atomic_file", ticking)
    write()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize(("step", "moment"), [("staging", 1), ("staging", 2), ("shards", 1), ("shards", 4),
                                              ("manifest", 3)])
def test_killed_writer_leaves_what_open_refuses_and_the_next_call_repairs(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, moment: int
) -> None:
    sources, _ = marked(tmp_path, tokenizer, alpha={}, gamma={})
    out = tmp_path / "out"

    def write(folder: Path = out, **more: Any) -> None:
        write_mixture(sources, tokenizer, folder, 0, shard_tokens=2500, **more)

    write(tmp_path / "straight")
    # manifest: two notes of the staging come through the same function before it
    killed(moment, lambda tick: half_written(write, tick, step, monkeypatch))
    with pytest.raises(ShardError, match="half-written shards: manifest.json, which is written last, is not there"):
        ShardSet.open(out, tokenizer)
    encoded: list[str] = []
    write(on_progress=lambda progress: encoded.append(progress.source))
    assert encoded == {("staging", 1): ["alpha", "gamma"], ("staging", 2): ["gamma"]}.get((step, moment), [])
    assert ShardSet.open(out, tokenizer).fingerprint == ShardSet.open(tmp_path / "straight").fingerprint
    assert sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("shard")) == ["manifest.json"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_rewrite_leaves_the_older_set_whole(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "set"
    write_shards(prose(50), tokenizer, whole, shard_tokens=500)
    before = ShardSet.open(whole).fingerprint

    def write() -> None:
        write_shards(prose(80, seed=3), tokenizer, whole, shard_tokens=500)

    killed(2, lambda tick: half_written(write, tick, "shards", monkeypatch))
    assert len(list(whole.glob("shard-001-*"))) == 1
    assert ShardSet.open(whole).fingerprint == before
    write()
    assert ShardSet.open(whole).summary.documents == 80
