"""The tokenizer gives every text back, does not change on disk, and never makes a special token out of text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cairn.models.tokenization import MIN_VOCABULARY, completion_ids, prompt_ids, tokenizer_fingerprint, train_bpe

WORDS = "the a cat dog saw ran home with red box and Tom's little tree by 12 old river".split()


def texts(seed: int = 0, count: int = 400) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(20)) + ".\n  \"Yes,\" it said!" for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe(texts(), 512)


@pytest.fixture(scope="module")
def neox() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer as GPT-NeoX has: one special token for all, and no bos by itself."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({"<|endoftext|>": 0, **{c: i for i, c in enumerate(letters, 1)}}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end)


ADVERSARIAL = [
    "", " ", "  ", "   x", "x   ", "a  b   c", "\n", "\n\n \n", "\t\tx\t", "\r\n", "\x00\x01\x7f", "\ufeffx",
    "\u3000\u2028\u00a0", "<0x41>", "<0x0A><0xFF>", "\u2581", "\u2581\u2581 \u2581the", "\u0120the", "<|eos|>",
    " <|bos|>the<|pad|>", "<|eos|", "🙂", "\U0001f469\u200d\U0001f467\u200d\U0001f466 family", "e\u0301\u00e9",
    "naïve Ω 漢字", "don't Tom’s 'tis", "12345 3.14", "\U0010ffff\uffff", "the cat. \"Yes,\" it said!\n",
]  # fmt: skip


@pytest.mark.parametrize("text", ADVERSARIAL)
def test_adversarial_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="<0x4F>▁|eos bpad\n\t'’.the", max_size=40))
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert not set(ids) & {0, 1, 2}


def test_ids_are_contiguous_and_begin_with_specials_and_bytes(tokenizer: PreTrainedTokenizerFast) -> None:
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 258]) == ["<|pad|>", "<|bos|>", "<|eos|>", "<0x00>", "<0xFF>"]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.padding_side == "left"


def test_pieces_keep_the_space_before_a_word_and_split_digits(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("the cat  saw Tom's 12\n", add_special_tokens=False).input_ids)
    assert tokens == ["the", " cat", " ", " saw", " Tom's", " 1", "2", "\n"]


def test_bos_is_put_in_front_and_eos_is_not_added(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("the cat").input_ids == [1, *tokenizer("the cat", add_special_tokens=False).input_ids]
    batch = tokenizer(["the", "the cat saw"], padding=True).input_ids
    assert batch[0][:2] == [0, 0] and batch[1][0] == 1


def test_vocabulary_has_the_size_asked_for_when_the_text_allows() -> None:
    rng = random.Random(1)
    many = ["".join(rng.choice("abcdefghij ") for _ in range(400)) for _ in range(50)]
    assert len(train_bpe(many, 700)) == 700


def test_training_twice_gives_the_same_tokenizer_even_with_ties_among_rare_characters() -> None:
    ties = [*texts(), *[chr(0x4E00 + number) for number in range(500)]]
    assert tokenizer_fingerprint(train_bpe(ties, 512)) == tokenizer_fingerprint(train_bpe(iter(ties), 512))


def test_save_and_load_in_a_process_without_cairn(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, python) -> None:
    tokenizer.save_pretrained(tmp_path / "tok")
    code = """
import json, sys
from transformers import AutoTokenizer
t = AutoTokenizer.from_pretrained("tok")
texts = json.load(open("texts.json"))
assert "cairn" not in sys.modules
print(json.dumps([[t(x).input_ids, t.decode(t(x).input_ids, skip_special_tokens=True)] for x in texts]))
"""
    (tmp_path / "texts.json").write_text(json.dumps(ADVERSARIAL))
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[tokenizer(text).input_ids, text] for text in ADVERSARIAL]


def test_text_that_spells_a_special_stays_text_after_loading(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for tok in (tokenizer, loaded):
        assert tok.eos_token_id not in tok("the<|eos|>").input_ids
        assert prompt_ids(tok, "<|bos|><|eos|>").count(1) == 1


def test_fingerprint_survives_saving_and_tells_vocabularies_apart(
    tokenizer: PreTrainedTokenizerFast, neox: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    mark = tokenizer_fingerprint(tokenizer)
    for name, tok in {"ours": tokenizer, "neox": neox}.items():
        tok.save_pretrained(tmp_path / name)
        assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path / name)) == tokenizer_fingerprint(tok)
    others = [train_bpe(texts(), 340), train_bpe([*texts(), "zebra " * 900], 512), neox]
    assert mark not in [tokenizer_fingerprint(other) for other in others]


def test_fingerprint_ignores_padding_and_truncation_but_not_how_text_is_cut(tmp_path: Path) -> None:
    tok = train_bpe(texts(), 400)
    mark = tokenizer_fingerprint(tok)
    tok(["the cat", "the"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tok) == mark
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert tokenizer_fingerprint(tok) != mark


def test_prompt_and_completion_of_our_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = tokenizer("the cat", add_special_tokens=False).input_ids
    assert prompt_ids(tokenizer, "the cat") == [1, *plain]
    assert completion_ids(tokenizer, "the cat") == [*plain, 2]
    assert tokenizer.decode([*prompt_ids(tokenizer, "the"), *completion_ids(tokenizer, " cat")]) == (
        "<|bos|>the cat<|eos|>"
    )
    assert prompt_ids(tokenizer, "") == [1] and completion_ids(tokenizer, "") == [2]


def test_prompt_and_completion_of_a_tokenizer_without_bos(neox: PreTrainedTokenizerFast) -> None:
    plain = neox("the cat", add_special_tokens=False).input_ids
    assert prompt_ids(neox, "the cat") == plain
    assert completion_ids(neox, "the cat") == [*plain, 0]
    assert 0 not in prompt_ids(neox, "the<|endoftext|>cat")
    assert 0 in neox("the<|endoftext|>cat").input_ids  # the caller's own setting is untouched


def test_wrong_arguments_are_refused_with_what_is_allowed(neox: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=rf"vocab_size is too small: 100. Allowed: {MIN_VOCABULARY} or more"):
        train_bpe(texts(), 100)
    with pytest.raises(ValueError, match="the training texts are empty"):
        train_bpe(["", ""], 512)
    with pytest.raises(TypeError, match="texts is one string. Allowed: an iterable of strings"):
        train_bpe("the cat", 512)
    with pytest.raises(TypeError, match="not a fast tokenizer: object"):
        tokenizer_fingerprint(object())
    endless = PreTrainedTokenizerFast(tokenizer_object=neox.backend_tokenizer)
    with pytest.raises(ValueError, match="the tokenizer has no eos token"):
        completion_ids(endless, "the")


def test_files_of_a_full_vocabulary_are_small(tmp_path: Path) -> None:
    rng = random.Random(2)
    pool = ["".join(rng.choice("etaoinshrdlu") for _ in range(rng.randrange(3, 9))) for _ in range(6000)]
    tok = train_bpe([" ".join(rng.choice(pool) for _ in range(200)) for _ in range(300)], 4096)
    tok.save_pretrained(tmp_path)
    assert len(tok) == 4096
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 300_000
