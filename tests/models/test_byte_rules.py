"""Patches end where their rule says, bytes come back whole, tables are counted right, and bad settings are named."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from cairn.models import CairnConfig
from cairn.models.byte_config import RULES, BytePooling, byte_pooling_of
from cairn.models.byte_fit import _entropies, fit_patch_rule, needs_fitting
from cairn.models.byte_rules import context_hash, limited_ends, spacelike
from cairn.models.tokenization import (
    byte_ids,
    byte_tokenizer,
    completion_ids,
    ids_to_bytes,
    prompt_ids,
    tokenizer_fingerprint,
    train_bpe,
)
from tests.models.byte_models import byte_model

TEXTS = [
    "Mary went to the kitchen. John took the milk. Where is the milk? The answer is yes or no.",
    "Sandra moved to the garden. Daniel dropped the apple there. none of them is in the office.",
] * 6


def cut(text: str | bytes, rule: str, **pooling: object) -> list[bytes]:
    """Returns the patches of a text behind the beginning mark; the last one may be open."""
    data = text.encode() if isinstance(text, str) else text
    model = byte_model(rule, **pooling)
    if needs_fitting(model):
        fit_patch_rule(model, TEXTS)
    ends = model.model(torch.tensor([[1, *byte_ids(data)]]), use_cache=False).patch_ends[0].tolist()
    assert ends[0]  # the mark is a patch of its own
    places = [0, *(place for place, end in enumerate(ends[1:], start=1) if end), len(data)]
    return [data[start:stop] for start, stop in zip(places, places[1:], strict=False) if start < stop]


# rules ---------------------------------------------------------------------------------------------------------------


def test_fixed_stride_counts_from_the_mark() -> None:
    assert cut("abcdefgh", "fixed", stride=3) == [b"abc", b"def", b"gh"]
    assert cut("🙂a", "fixed", stride=3) == ["🙂a".encode()[:3], "🙂a".encode()[3:]]
    assert cut("ab\0c", "fixed", stride=1) == [b"a", b"b", b"\0", b"c"]


def test_space_cuts_after_the_first_of_a_run() -> None:
    assert cut("Hi there,  you 2!\n ok", "space") == [b"Hi ", b"there,", b"  you ", b"2!", b"\n ok"]
    assert cut("x" * 30, "space", max_patch=12) == [b"x" * 12, b"x" * 12, b"x" * 6]
    # a character of several bytes is parted after its first byte, as in the source
    assert cut("é漢", "space") == [b"\xc3\xa9\xe6", b"\xbc\xa2"]


def test_spacelike_is_no_letter_no_digit_no_continuation() -> None:
    found = {value for value in range(256) if spacelike(torch.tensor(byte_ids(bytes([value]))))}
    assert found == {
        value for value in range(256) if not (value < 128 and chr(value).isalnum()) and not 0x80 <= value <= 0xBF
    }


def test_a_mark_ends_the_patch_before_the_stride_does() -> None:
    model = byte_model("fixed", stride=4)
    ids = torch.tensor([[1, *byte_ids(b"abcdef"), 2, 1, *byte_ids(b"abcde")]])
    ends = model.model(ids, use_cache=False).patch_ends[0].long().tolist()
    assert ends == [1, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0]


def test_longest_patch_written_as_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.rand(3, 60, generator=generator) < 0.1
    real = torch.rand(3, 60, generator=generator) < 0.9
    raw &= real
    whole, since = limited_ends(raw, real, torch.tensor([0, 2, 7]), 5)
    for row, count in enumerate([0, 2, 7]):
        expected = []
        for end, there in zip(raw[row].tolist(), real[row].tolist(), strict=True):
            count += there
            expected.append(end or (there and count % 5 == 0))
            count = 0 if end else count
        assert whole[row].tolist() == expected and int(since[row]) == count


def test_context_hash_depends_on_the_last_ids_alone() -> None:
    ids = torch.randint(0, 259, (1, 4000), generator=torch.Generator().manual_seed(0))
    whole = context_hash(ids, 3, 1 << 16, 3998)
    assert torch.equal(whole[:, 1000:], context_hash(ids[:, 1000:], 3, 1 << 16, 2998))
    assert int(whole.min()) >= 0 and int(whole.max()) < 1 << 16
    assert len(whole.unique()) > 0.96 * 3998  # 16 bits hold 3,998 contexts with few collisions
    assert len(context_hash(ids, 1, 1 << 16, 4000).unique()) == 259


# tables --------------------------------------------------------------------------------------------------------------


def test_entropies_are_those_of_the_counts() -> None:
    ids = torch.tensor(byte_ids(b"abacabadabacabae" * 3))
    context = context_hash(ids[None], 1, 512, len(ids))[0]
    found = _entropies(context, ids, torch.bincount(context, minlength=512))
    after = Counter(ids[1:].tolist())
    pairs = defaultdict(Counter)
    for one, other in zip(ids.tolist(), ids[1:].tolist(), strict=False):
        pairs[one][other] += 1
    for one, counts in pairs.items():
        total = sum(counts.values()) + 1
        chances = [(counts[b] + after[b] / (len(ids) - 1)) / total for b in after]
        expected = -sum(p * math.log(p) for p in chances)
        assert found[context[ids == one][0]].item() == pytest.approx(expected)
    unseen = -sum(n / (len(ids) - 1) * math.log(n / (len(ids) - 1)) for n in after.values())
    assert found.max().item() == pytest.approx(unseen) and sum(found == found.max()) > 500


@pytest.mark.parametrize("rule", ["entropy", "bpe"])
def test_fitted_patches_have_the_length_asked_for(rule: str) -> None:
    for stride in (3, 6):
        model = byte_model(rule, stride=stride)
        found = fit_patch_rule(model, iter(TEXTS))
        assert found["mean_patch"] == pytest.approx(stride, rel=0.35)
        again = byte_model(rule, stride=stride, seed=1)
        fit_patch_rule(again, TEXTS)
        assert torch.equal(model.model.rule.table, again.model.rule.table)


def test_bpe_rule_guesses_the_token_ends_from_the_past() -> None:
    tokens = sum(len(ids) for ids in train_bpe(TEXTS, 400)(TEXTS, add_special_tokens=False).input_ids)
    stride = round(sum(map(len, TEXTS)) / tokens)
    found = fit_patch_rule(byte_model("bpe", bpe_vocab=400, stride=stride, table_order=4), TEXTS)
    assert found["precision"] > 0.9 and found["recall"] > 0.9


def test_a_table_that_was_never_counted_is_refused() -> None:
    model = byte_model("entropy")
    model.model.rule.table.fill_(255)
    with pytest.raises(ValueError, match="table of rule 'entropy' was never fitted; next: cairn.models.byte_fit"):
        model(torch.tensor([[1, 80]]))
    with pytest.raises(ValueError, match="texts are empty"):
        fit_patch_rule(model, [""])
    with pytest.raises(ValueError, match="patch rule has no table. Allowed: byte_pooling.rule 'entropy' or 'bpe'"):
        fit_patch_rule(byte_model("space"), TEXTS)


# settings ------------------------------------------------------------------------------------------------------------


def test_derived_values_follow_what_is_set() -> None:
    settings = byte_pooling_of({"rule": "fixed", "stride": 5, "local_size": 96}, 256)
    assert (settings.max_patch, settings.local_inner, settings.history) == (5, 256, 1)
    settings = byte_pooling_of({"rule": "entropy", "stride": 5, "table_order": 4, "ngram_sizes": [2, 6]}, 256)
    assert (settings.max_patch, settings.history) == (20, 5)
    assert byte_pooling_of({"rule": "none"}, 256).local_size == 256


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"rule": "gpt2"}, r"rule is 'gpt2' \(it looks ahead: rule 'bpe' predicts"),
        ({"tokenizer": "gpt2"}, "boundaries of a tokenizer depend on bytes to come"),
        ({"strid": 4}, r"unknown field 'strid' \(did you mean stride\?\)"),
        ({"stride": 0, "pooling": "max"}, "pooling is 'max', allowed: mean, attention, last; stride is 0, allowed: a"),
        ({"local_size": 30, "local_heads": 4}, r"local_heads is 4, allowed: a divisor of local_size \(30\)"),
        ({"rule": "none", "local_size": 64}, "local_size is 64, allowed: 256 with rule 'none'"),
        ({"rule": "fixed", "max_patch": 9}, r"max_patch is 9, allowed: the stride \(6\)"),
        ({"rule": "learned", "stride": 1}, "stride is 1, allowed: at least 2"),
        ({"decoder_layers": 0}, "decoder_layers is 0, allowed: a whole number of at least 1"),
        ({"ngram_sizes": [1]}, r"ngram_sizes is \(1,\), allowed: whole numbers from 2 to 16"),
        ({"ratio_weight": -1}, "ratio_weight is -1, allowed: a number of at least 0"),
        ({"window": True}, "window is True"),
        ({"byte_residual": 1}, "byte_residual is 1, allowed: true or false"),
    ],
)
def test_bad_settings_are_named(given: dict, text: str) -> None:
    with pytest.raises(ValueError, match=f"byte_pooling: .*{text}"):
        CairnConfig(vocab_size=259, byte_pooling=given)


# bytes as tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "a", "\0", "naïve Ω 漢字\r\n", "🙂" * 40, "👩‍👧 family", "<|eos|> <0x41> Ġ\u2581", "x" * 100_000]
)
def test_every_text_comes_back(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = prompt_ids(tokenizer, text)
    assert ids == [1, *byte_ids(text.encode())] == tokenizer(text, verbose=False).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids_to_bytes([*ids, 2]) == text.encode()
    assert completion_ids(tokenizer, text) == [*ids[1:], 2]


def test_bytes_that_are_no_text_keep_their_ids() -> None:
    data = bytes(range(256))
    assert ids_to_bytes(byte_ids(data)) == data and max(byte_ids(data)) == 258
    assert byte_tokenizer().decode(byte_ids(b"A\xff\xe2\x82B")) == "A\ufffd\ufffdB"
    with pytest.raises(ValueError, match="id 259 is not of a byte vocabulary. Allowed: 0 to 258"):
        ids_to_bytes([80, 259])
    for tokenizer in (byte_tokenizer(), train_bpe(TEXTS, 320)):
        with pytest.raises(ValueError, match=r"the text holds '\\udcff', half of a character"):
            prompt_ids(tokenizer, b"a\xffb".decode(errors="surrogateescape"))


def test_the_byte_tokenizer_survives_saving(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(model_max_length=77)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
    assert (len(again), again.model_max_length, again.padding_side) == (259, 77, "left")
    assert (again.pad_token_id, again.bos_token_id, again.eos_token_id) == (0, 1, 2)
    assert again.convert_ids_to_tokens([0, 1, 2]) == ["<|pad|>", "<|bos|>", "<|eos|>"]


# the page ------------------------------------------------------------------------------------------------------------


def test_page_has_every_key_with_its_default(repository: Path) -> None:
    page = (repository / "docs" / "bytes.md").read_text()
    found = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \| ", page, re.MULTILINE))
    defaults = {field.name: field.default for field in fields(BytePooling)}
    assert {name: yaml.safe_load(text) for name, text in found.items()} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()
    }
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    assert byte_pooling_of(settings["model"]["changes"]["byte_pooling"], 224).rule == "space"
    assert [rule for rule in RULES if f"| `{rule}` |" not in page] == []
