"""Bits per byte and BLiMP: against closed forms, against the harness, and whatever the batching."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cairn.engines.base import Capabilities, Score
from cairn.errors import DataError, EngineError, InputError
from cairn.evaluation.suites import bits_per_byte, blimp, first_bytes, token_windows

TEXTS = [
    "The cat sat on the mat, and the dog looked at the cat.\n",
    "Naïve “quotes” cost more bytes than letters; Ω does as well. " * 6,
    "A small one.",
]


class ScoreEngine:
    """Scores a text by a function; counts how it was asked."""

    name = "scripted"

    def __init__(self, logprob: Any, logprobs: bool = True) -> None:
        self.capabilities = Capabilities(logprobs, False, False, False, False, None)
        self.logprob = logprob
        self.asked: list[str] = []

    def loglikelihood_rolling(self, texts: Sequence[str], adapter: str | None = None) -> list[Score]:
        self.asked += texts
        return [Score(self.logprob(text), False, len(text.split())) for text in texts]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from cairn.models.tokenization import train_bpe

    return train_bpe(TEXTS * 3, 400)


def engine_of(model: Any, tokenizer: Any, context: int | None = 64) -> Any:
    can = Capabilities(True, False, False, False, False, context)
    return SimpleNamespace(name="torch", model=model, tokenizer=tokenizer, capabilities=can)


@pytest.fixture(scope="module")
def tiny(tokenizer: Any) -> Any:
    from cairn.models import CairnConfig, CairnForCausalLM

    torch.manual_seed(0)
    config = CairnConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return engine_of(CairnForCausalLM(config).eval(), tokenizer)


@pytest.mark.parametrize("length", [0, 1, 2, 5, 8, 9, 10, 31, 64])
@pytest.mark.parametrize(("context", "stride"), [(1, 1), (4, 1), (4, 2), (8, 3), (8, 8), (64, 32)])
def test_windows_score_every_token_exactly_once(length: int, context: int, stride: int) -> None:
    windows = token_windows(length, context, stride)
    scored = list(itertools.chain.from_iterable(range(w.score_from, w.stop) for w in windows))
    assert scored == list(range(1, length))
    for w in windows:
        assert w.start < w.score_from and len(range(w.start, w.stop - 1)) <= context
    for w in windows[1:]:  # every later window sees at least what is not scored anew
        assert w.score_from - w.start >= context - stride + 1 and w.stop - w.score_from <= stride


def test_windows_refuse_a_stride_that_would_skip() -> None:
    with pytest.raises(InputError, match="no such window: 'context 4, stride 5'"):
        token_windows(10, 4, 5)


class Uniform(torch.nn.Module):
    """Gives every token the same probability."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=torch.full((*input_ids.shape, self.config.vocab_size), 3.0))


def test_a_uniform_model_needs_log2_of_its_vocabulary_per_token(tokenizer: Any) -> None:
    found = bits_per_byte(engine_of(Uniform(512), tokenizer), TEXTS)
    tokens = sum(len(tokenizer(text, add_special_tokens=False).input_ids) for text in TEXTS)
    size = sum(len(text.encode("utf-8")) for text in TEXTS)
    assert size > sum(map(len, TEXTS))  # bytes, not characters
    assert (found["tokens"], found["bytes"], found["documents"]) == (tokens, size, 3)
    assert found["bits_per_byte"] == pytest.approx(9 * tokens / size, rel=1e-6)
    assert found["bits_per_token"] == pytest.approx(9, rel=1e-6)
    assert found["stderr"] == pytest.approx(0, abs=1e-6)
    assert found["lossless"] is True and (found["context"], found["stride"]) == (64, 32)


def test_the_figure_is_that_of_scoring_each_token_by_hand(tiny: Any) -> None:
    found = bits_per_byte(tiny, TEXTS, context=16, stride=4)
    nats = 0.0
    for text in TEXTS:
        ids = [1, *tiny.tokenizer(text, add_special_tokens=False).input_ids]
        for window in token_windows(len(ids), 16, 4):
            read = torch.tensor([ids[window.start : window.stop - 1]])
            logprobs = tiny.model(read).logits[0].detach().double().log_softmax(-1)
            for place in range(window.score_from, window.stop):
                nats -= float(logprobs[place - 1 - window.start, ids[place]])
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["bytes"], rel=1e-5)


def test_batching_does_not_change_the_figure_but_the_window_does(tiny: Any) -> None:
    wanted = bits_per_byte(tiny, TEXTS, context=16, stride=8, batch_tokens=1)
    for batch_tokens in (40, 8192):
        found = bits_per_byte(tiny, TEXTS, context=16, stride=8, batch_tokens=batch_tokens)
        assert found["bits_per_byte"] == pytest.approx(wanted["bits_per_byte"], rel=1e-6)
        assert found["tokens"] == wanted["tokens"]
    assert bits_per_byte(tiny, TEXTS, context=8, stride=8)["bits_per_byte"] != wanted["bits_per_byte"]


def test_a_lossy_tokenizer_is_reported(tiny: Any) -> None:
    class Lower:
        bos_token_id, eos_token_id = 1, 2

        def __call__(self, text: str, **more: Any) -> Any:
            return tiny.tokenizer(text.lower(), **more)

        decode = staticmethod(lambda ids, **more: tiny.tokenizer.decode(ids, **more))

    assert bits_per_byte(engine_of(tiny.model, Lower()), TEXTS)["lossless"] is False


def test_bits_per_byte_errors(tiny: Any) -> None:
    with pytest.raises(InputError, match="no text to score"):
        bits_per_byte(tiny, ["", ""])
    with pytest.raises(InputError, match="context is longer than the model's: 65. Allowed: 1 to 64"):
        bits_per_byte(tiny, TEXTS, context=65)
    with pytest.raises(EngineError, match="cannot do what is needed: 'logprobs'"):
        bits_per_byte(ScoreEngine(len, logprobs=False), TEXTS)
    with pytest.raises(InputError, match="chooses its own windows"):
        bits_per_byte(ScoreEngine(len), TEXTS, stride=4)


def test_an_engine_without_a_model_is_scored_by_its_own_windows() -> None:
    found = bits_per_byte(ScoreEngine(lambda text: -math.log(2) * len(text)), ["abcd", "", "ef"])
    assert found["bits_per_byte"] == pytest.approx(1.0) and found["documents"] == 2


def test_first_bytes_cuts_between_characters() -> None:
    assert list(first_bytes(["abc", "déf", "g"], 5)) == ["abc", "d"]
    assert list(first_bytes(["abc", "déf", "g"], 6)) == ["abc", "dé"]
    assert list(first_bytes(["abc", "déf"], None)) == ["abc", "déf"]


def pair(uid: str, good: str, bad: str) -> dict[str, str]:
    return {"sentence_good": good, "sentence_bad": bad, "UID": uid}


ROWS = [pair("long", f"good {i}", f"bad {i}") for i in range(8)] + [
    pair("short", "same", "same"),
    pair("short", "bad x", "good x"),
]


def scripted(text: str) -> float:
    return -1.0 if text.startswith("good") else -2.0


def test_blimp_ties_are_half_and_the_mean_is_over_paradigms() -> None:
    found = blimp(ScoreEngine(scripted), ROWS)
    assert found["paradigms"]["long"] == {"accuracy": 1.0, "n": 8, "ties": 0}
    assert found["paradigms"]["short"] == {"accuracy": 0.25, "n": 2, "ties": 1}  # a tie and a miss
    assert found["accuracy"] == pytest.approx((1.0 + 0.25) / 2)  # the micro mean would be 0.85
    assert (found["n"], found["ties"]) == (10, 1)
    assert found["stderr"] == pytest.approx(math.sqrt(0.25 * 0.75 / 2) / 2)
    assert found["ci95"][0] < found["accuracy"] < found["ci95"][1]
    assert blimp(ScoreEngine(lambda text: 0.0), ROWS)["accuracy"] == 0.5


def test_blimp_limit_counts_pairs_of_each_paradigm() -> None:
    engine = ScoreEngine(scripted)
    found = blimp(engine, ROWS, limit=1)
    assert found["n"] == 2 and found["accuracy"] == 0.75
    assert len(engine.asked) == 3  # the sentence that is both good and bad is scored once


def test_blimp_resumes_with_the_paradigms_that_are_left() -> None:
    whole = blimp(ScoreEngine(scripted), ROWS)
    kept: dict[str, Any] = {}
    blimp(ScoreEngine(scripted), ROWS[:8], on_paradigm=lambda uid, result: kept.update({uid: result}))
    engine = ScoreEngine(scripted)
    assert blimp(engine, ROWS, done=kept) == whole
    assert sorted(engine.asked) == ["bad x", "good x", "same"]


def test_blimp_names_a_row_that_is_no_pair() -> None:
    with pytest.raises(DataError, match="row 2 is no minimal pair, it lacks sentence_bad, UID"):
        blimp(ScoreEngine(scripted), [ROWS[0], {"sentence_good": "x"}])
    with pytest.raises(DataError, match="no minimal pairs"):
        blimp(ScoreEngine(scripted), [])


PAIRS = [
    ("The cats sit on the mat.", "The cats sits on the mat."),
    ("The dog looked.", "The dog look."),
    ("Who saw the cat?", "Who saw cat the?"),
    ("Ω is small.", "Ω are small."),
    ("A cat.", "Cat a."),
]


def test_log_likelihoods_equal_those_of_lm_evaluation_harness(tiny: Any) -> None:
    """Every sentence alone after the beginning mark: the same number from the harness's HFLM, and the same verdicts."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from cairn.engines.torch_engine import TorchEngine

    engine = TorchEngine(tiny.model, tokenizer=tiny.tokenizer)
    texts = [text for two in PAIRS for text in two]
    harness = HFLM(pretrained=tiny.model, tokenizer=tiny.tokenizer, batch_size=1, max_length=64)
    requests = [Instance("loglikelihood", {}, ("", text), index) for index, text in enumerate(texts)]
    theirs = [logprob for logprob, _ in harness.loglikelihood(requests, disable_tqdm=True)]
    ours = [score.logprob for score in engine.loglikelihood_rolling(texts)]
    assert ours == pytest.approx(theirs, abs=1e-4)
    found = blimp(engine, [pair("all", good, bad) for good, bad in PAIRS])
    assert found["accuracy"] == sum(g > b for g, b in zip(theirs[::2], theirs[1::2], strict=True)) / len(PAIRS)
    per_text = [bits_per_byte(engine, [text])["bits_per_byte"] for text in texts]
    assert per_text == pytest.approx(
        [-logprob / math.log(2) / len(text.encode()) for logprob, text in zip(theirs, texts, strict=True)], abs=1e-5
    )
