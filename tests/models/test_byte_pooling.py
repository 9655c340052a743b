"""A byte-pooled model is a distribution over bytes: nothing leaks, cached = uncached, padded = alone, sums to one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import StaticCache

from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.byte_config import byte_parameters
from cairn.models.byte_layers import smoothed, window_bias
from cairn.models.tokenization import byte_ids
from tests.models.byte_models import RULES, TEXT, byte_model, rows

# every rule once, and with them every pooling, n-grams, no byte residual, and the core's switches
CASES: dict[str, dict[str, Any]] = {
    "fixed": {"byte_residual": False},
    "space": {"core": {"qk_norm": True}},
    "entropy": {"pooling": "last"},
    "learned": {"pooling": "attention", "pooling_heads": 2, "core": {"value_residual": True, "qk_norm": True}},
    "bpe": {"pooling": "attention", "ngram_sizes": [2, 4], "ngram_rows": 50, "core": {"logit_softcap": 9.0}},
    "none": {"ngram_sizes": [3], "ngram_rows": 50},
}
assert tuple(CASES) == RULES


def model_of(rule: str) -> CairnForCausalLM:
    """In float64, so that a leak cannot hide among rounding errors."""
    return byte_model(rule, **CASES[rule]).double()


def logits(model: CairnForCausalLM, ids: Tensor, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False, **inputs).logits


def close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() < 1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_no_byte_is_seen_before_it_is_there(rule: str) -> None:
    """Other bytes from t + 1 on, whatever patches they make, leave every logit up to t as it was."""
    model, ids = model_of(rule), rows(2)
    whole, length = logits(model, ids), ids.shape[1]
    noise = torch.randint(3, 259, (length, length), generator=torch.Generator().manual_seed(5))
    later = torch.arange(length)[None] > torch.arange(length)[:, None]  # row t differs from t + 1 on
    for row in range(2):
        changed = logits(model, torch.where(later, noise, ids[row]))
        moved = (changed - whole[row]).abs().amax(-1)  # [length, length]
        assert moved.masked_fill(later, 0).max() < 1e-9
        assert moved.masked_fill(~later, 0).max() > 1e-3  # the test sees what it should


@pytest.mark.parametrize("rule", RULES)
def test_probabilities_of_all_continuations_sum_to_one(rule: str) -> None:
    """Scored whole, in one pass each, as text is scored: a position that knew its byte would give more than one.

    All strings of two bytes for one rule; for the others, those that begin with some bytes, which sum to the chance of
    that byte.
    """
    model, prompt = byte_model(rule, **CASES[rule]), torch.tensor([1] if rule == "learned" else [1, *byte_ids(b"at")])
    firsts = torch.arange(259) if rule == "learned" else torch.arange(0, 259, 20)
    pairs = torch.cartesian_prod(firsts, torch.arange(259))
    sums = torch.zeros(259, dtype=torch.float64)
    for part in pairs.split(20_000):
        ids = torch.cat((prompt.expand(len(part), -1), part), 1)
        scores = logits(model, ids[:, :-1])[:, -2:].double().log_softmax(-1)
        sums.index_add_(0, part[:, 0], scores.gather(2, part[..., None]).sum((1, 2)).exp())
    alone = logits(model, prompt[None])[0, -1].double().softmax(-1)
    assert (sums - alone)[firsts].abs().max() < 1e-6
    if len(firsts) == 259:
        assert float(sums.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rule", RULES)
def test_cached_equals_uncached(rule: str, attention: str) -> None:
    model, ids = model_of(rule), rows()
    model.set_attn_implementation(attention)
    whole = logits(model, ids)
    for cuts in ([*range(14), 30], [5, 6, 20], [1]):
        cache, parts = DynamicCache(), []
        with torch.no_grad():
            for start, stop in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
                if start < stop:
                    parts.append(model(ids[:, start:stop], past_key_values=cache).logits)
                    assert cache.get_seq_length() == stop
        assert close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("rule", RULES)
def test_padding_on_either_side_changes_nothing(rule: str) -> None:
    """Rows of different lengths and so of different patches, in one batch, are what each is alone."""
    model, ids = model_of(rule), rows()
    lengths, width = [ids.shape[1], 9, 2], ids.shape[1] + 3
    alone = [logits(model, row[None, :length])[0] for row, length in zip(ids, lengths, strict=True)]
    for side in ("left", "right"):
        padded = torch.zeros(3, width, dtype=torch.long)
        mask = torch.zeros_like(padded)
        places = [slice(width - n, width) if side == "left" else slice(0, n) for n in lengths]
        for row, place in enumerate(places):
            padded[row, place], mask[row, place] = ids[row, : lengths[row]], 1
        together = logits(model, padded, attention_mask=mask)
        assert all(close(together[row, place], alone[row]) for row, place in enumerate(places))
        if side == "right":  # as scoring does: no mask, padding behind every byte that counts
            together = logits(model, padded)
            assert all(close(together[row, place], alone[row]) for row, place in enumerate(places))
        cache = DynamicCache()
        with torch.no_grad():
            model(padded[:, :-4], attention_mask=mask[:, :-4], past_key_values=cache)
            last = model(padded[:, -4:], attention_mask=mask, past_key_values=cache).logits
        real = mask[:, -4:] > 0
        assert close(last[real], together[:, -4:][real])


@pytest.mark.parametrize("rule", ["space", "learned", "none"])
def test_rows_of_the_cache_can_be_chosen_repeated_and_reordered(rule: str) -> None:
    model, ids = model_of(rule), rows()
    whole, cache = logits(model, ids), DynamicCache(config=model_of(rule).config)
    with torch.no_grad():
        model(ids[:, :11], past_key_values=cache)
        cache.batch_select_indices(torch.tensor([2, 0]))
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0]))
        assert close(model(ids[[0, 2], 11:], past_key_values=cache).logits, whole[[0, 2], 11:])


def test_a_window_sees_its_bytes_and_no_others() -> None:
    bias = window_bias(torch.tensor([[False] * 3 + [True] * 7]), 3, torch.float32)  # 7 bytes, blocks of 3
    assert bias.shape == (1, 1, 3, 3, 6)
    seen = [[block * 3 + key - 3 for key in range(6) if bias[0, 0, block, query, key] == 0]
            for block in range(3) for query in range(3)][:7]  # fmt: skip
    assert seen == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]]


def test_smoothing_is_the_running_mean_written_as_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 300, 4, generator=generator, dtype=torch.float64)  # more than one span
    p = torch.rand(2, 300, generator=generator, dtype=torch.float64)
    p[:, ::50] = 1.0
    y, expected = torch.zeros(2, 4, dtype=torch.float64), []
    for place in range(300):
        y = p[:, place, None] * x[:, place] + (1 - p[:, place, None]) * y
        expected.append(y)
    assert (smoothed(x, p, torch.zeros(2, 4)) - torch.stack(expected, 1)).abs().max() < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_every_weight_learns(rule: str) -> None:
    model = byte_model(rule, **CASES[rule]).train()
    ids = rows()[:, 1:]  # without the beginning mark, which is a patch: the bytes before the first patch learn as well
    loss = model(ids, labels=ids).loss
    if rule == "learned":  # without the ratio loss: the bytes' own loss reaches the boundaries
        assert model.model.aux_loss > 0
    loss.backward()
    still = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.abs().sum()]
    assert not still


def test_ratio_loss_draws_the_learned_boundaries_to_the_stride() -> None:
    model = byte_model("learned", stride=6).train()
    optimizer = torch.optim.Adam(model.model.rule.parameters(), lr=0.02)
    ids = rows(8)

    def mean_patch() -> float:
        return float(ids.numel() / model.model(ids).patch_ends.sum())

    before = mean_patch()
    for _ in range(40):
        optimizer.zero_grad()
        model.model(ids).aux_loss.backward()
        optimizer.step()
    assert abs(mean_patch() - 6) < 0.4 * abs(before - 6)
    with torch.no_grad():
        model(ids)
    assert model.model.aux_loss is None  # nothing is held where nothing is trained


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_account_of_the_interface_is_exact(rule: str, tied: bool) -> None:
    case = dict(CASES[rule])
    model = byte_model(
        rule, core={**case.pop("core", {}), "tie_word_embeddings": tied, "feed_forward": "relu2"}, **case
    )
    around = sum(weight.numel() for name, weight in model.named_parameters() if ".core." not in name)
    parts = byte_parameters(model.config)
    assert parts["total"] == around == sum(count for name, count in parts.items() if name != "total")


def test_shared_layers_of_the_core(tmp_path) -> None:
    model = byte_model(core={"num_hidden_layers": 4, "sharing": {"feed_forward": {"scheme": "all"}}})
    model.save_pretrained(tmp_path)
    again = CairnForCausalLM.from_pretrained(tmp_path).eval()
    layers = again.model.core.layers
    assert layers[0].mlp.up_proj.weight.data_ptr() == layers[3].mlp.up_proj.weight.data_ptr()
    assert torch.equal(logits(again, rows()), logits(model, rows()))
    assert again.config.byte_pooling["max_patch"] == 12  # defaults are saved with the model


def test_long_and_short_inputs() -> None:
    """100,000 bytes, most of them without a space, run; one byte does; none is refused."""
    model = byte_model()
    long = torch.tensor([[1, *byte_ids((b"x" * 99_000 + TEXT.encode() * 30)[:100_000])]])
    assert logits(model, long[:, :100_000])[:, -1].isfinite().all()
    assert logits(model, torch.tensor([[80]])).shape == (1, 1, 259)
    with pytest.raises(ValueError, match="input_ids is empty, allowed: at least one id"):
        model(torch.zeros(1, 0, dtype=torch.long))


def test_what_would_be_silently_wrong_is_refused() -> None:
    model, ids = byte_model(), rows()
    packed = torch.cat((torch.arange(6), torch.arange(ids.shape[1] - 6)))[None]
    for inputs, text in (
        ({"position_ids": packed, "use_cache": False}, "one sequence per row, not packed ones"),
        ({"cu_seq_lens_q": torch.tensor([0, 4])}, r"packed ones \(cu_seq_lens_q\)"),
        ({"attention_mask": torch.ones(3, 1, 4, 4)}, "attention_mask has 4 dimensions, allowed: 2"),
        ({"past_key_values": StaticCache(config=model.config, max_cache_len=64)}, "cannot use StaticCache here"),
    ):
        with pytest.raises(ValueError, match=text):
            model(ids, **inputs)
    with pytest.raises(ValueError, match="needs input_ids, not inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 4, 32))
    with pytest.raises(ValueError, match="byte_pooling needs vocab_size 259 .* not 300"):
        CairnForCausalLM(CairnConfig(vocab_size=300, byte_pooling={}))
    with pytest.raises(ValueError, match="early_exit and byte_pooling are both set"):
        CairnForCausalLM(CairnConfig(vocab_size=259, byte_pooling={}, early_exit={"layers": [2]}))
    used = model(ids).past_key_values
    with pytest.raises(ValueError, match="cannot be taken back"):
        used.crop(-1)
    other = CairnForCausalLM(CairnConfig(vocab_size=259, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                         num_key_value_heads=2)).eval()(ids).past_key_values  # fmt: skip
    with pytest.raises(ValueError, match="was written by another model"):
        model(ids, past_key_values=other)
