"""The decoder is what it says: Llama's logits, right caches, right padding, two shapes at once, travelling code."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.accounting import flops_per_token, forward_flops, kv_bytes_per_token, parameters_by_part
from cairn.models.export import from_llama, to_llama
from cairn.models.presets import PRESETS, preset_config

SHAPE = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)


def tiny(**changes):
    torch.manual_seed(0)
    return CairnForCausalLM(CairnConfig(**{**SHAPE, **changes})).eval()


def tokens(rows=3, length=17, seed=1):
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [True, False])
def test_same_logits_as_llama(attention, tied):
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**SHAPE, rms_norm_eps=1e-6, tie_word_embeddings=tied)).eval()
    ours = CairnForCausalLM._from_config(
        CairnConfig(**SHAPE, tie_word_embeddings=tied), attn_implementation=attention
    ).eval()
    ours.load_state_dict(llama.state_dict())
    difference = (ours(tokens()).logits - llama(tokens()).logits).abs().max()
    assert difference < 1e-4
    assert ours(tokens()).logits.std() > 0.01


@pytest.mark.parametrize("qk_norm", [False, True])
def test_export_and_back(qk_norm):
    ours = tiny(qk_norm=qk_norm, rope_theta=5000.0)
    if qk_norm:  # gains of one would hide a wrong norm
        for name, parameter in ours.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                parameter.data.uniform_(0.5, 2.0)
    out = to_llama(ours)
    assert type(out).__name__ == ("Qwen3ForCausalLM" if qk_norm else "LlamaForCausalLM")
    assert (out(tokens()).logits - ours(tokens()).logits).abs().max() < 1e-4
    back = from_llama(out)
    assert torch.equal(back(tokens()).logits, ours(tokens()).logits)


def test_export_refuses_what_it_cannot_hold():
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True))
    with pytest.raises(ValueError, match="attention_bias is True, allowed: False"):
        from_llama(model)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_cached_equals_uncached(qk_norm):
    model, ids = tiny(qk_norm=qk_norm), tokens()
    whole = model(ids).logits
    cache, parts = None, []
    for start, stop in ((0, 5), (5, 6), (6, 12), (12, 17)):
        out = model(ids[:, start:stop], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-5
    greedy = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(greedy, model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False))


def test_padded_batch_equals_single():
    model = tiny(qk_norm=True)
    rows = [tokens(1, n, seed=n)[0] for n in (3, 9, 14)]
    width = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.zeros(width - len(r), dtype=torch.long), r]) for r in rows])
    mask = torch.stack([torch.arange(width) >= width - len(r) for r in rows]).long()
    together = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    for number, row in enumerate(rows):
        alone = model.generate(row[None], max_new_tokens=6, do_sample=False)[0, len(row):]
        assert torch.equal(together[number, width:], alone)
    right = torch.stack([torch.cat([r, torch.zeros(width - len(r), dtype=torch.long)]) for r in rows])
    mask = torch.stack([torch.arange(width) < len(r) for r in rows]).long()
    logits = model(right, attention_mask=mask).logits
    for number, row in enumerate(rows):
        assert (logits[number, : len(row)] - model(row[None]).logits[0]).abs().max() < 1e-5


def test_packed_row_equals_separate_rows():
    """Positions that start anew mark documents inside one row; none may see another."""
    model = tiny()
    first, second = tokens(1, 7, seed=2), tokens(1, 9, seed=3)
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    packed = model(torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
    alone = torch.cat([model(first).logits, model(second).logits], 1)
    assert (packed - alone).abs().max() < 1e-5


@pytest.mark.parametrize("variant", [{}, {"value_residual": True, "sharing": {"blocks": {"repeat": 2}}}])
def test_continuous_batching_equals_generate(variant):
    model = tiny(**variant)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = -1
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (4, 11, 7)]
    from transformers import ContinuousBatchingConfig, GenerationConfig

    wanted = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=-1)
    out = model.generate_batch(
        prompts, generation_config=wanted, progress_bar=False,
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=8, page_size=32, max_batch_tokens=64),
    )
    answers = {tuple(o.prompt_ids): o.generated_tokens for o in out.values()}
    for prompt in prompts:
        alone = model.generate(torch.tensor([prompt]), generation_config=wanted)[0, len(prompt):].tolist()
        assert answers[tuple(prompt)] == alone


def test_two_shapes_in_one_process():
    small, ids = tiny(), tokens()
    before = small(ids).logits
    other = CairnForCausalLM(
        CairnConfig(**{**SHAPE, "hidden_size": 48, "num_attention_heads": 2, "rope_theta": 100.0})
    ).eval()
    other(ids)
    assert torch.equal(small(ids).logits, before)
    fresh = CairnForCausalLM(other.config).eval()
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(fresh(ids).logits, other(ids).logits)


def test_tied_head_is_one_tensor_after_reload(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CairnConfig)


def test_code_travels_with_the_checkpoint(tmp_path):
    """A process that cannot import cairn loads the folder with trust_remote_code and gets the same logits."""
    model = tiny(qk_norm=True, sharing={"feed_forward": {"scheme": "all", "delta_rank": 2}})
    model.save_pretrained(tmp_path / "model")
    torch.save((tokens(), model(tokens()).logits), tmp_path / "expected.pt")
    script = f"""
import sys
sys.modules["cairn"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True)
ids, expected = torch.load({str(tmp_path / 'expected.pt')!r})
out = model.generate(ids, max_new_tokens=2, do_sample=False)
print(type(model).__module__, float((model(ids).logits - expected).abs().max()), tuple(out.shape))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    module, difference, shape = done.stdout.strip().split(" ", 2)
    assert module.startswith("transformers_modules.") and float(difference) < 1e-6
    assert shape == "(3, 19)"


@pytest.mark.parametrize("name", PRESETS)
def test_preset_accounting_matches_the_built_model(name):
    config = preset_config(name)
    with torch.device("meta"):
        model = CairnForCausalLM(config)
    parts = parameters_by_part(config)
    assert parts["total"] == sum(p.numel() for p in model.parameters())
    assert sum(v for k, v in parts.items() if k != "total") == parts["total"]
    sizes = {"1m": 1e6, "5m": 5e6, "10m": 10e6, "50m": 50e6, "100m": 100e6}
    if name in sizes:
        assert 0.9 < parts["total"] / sizes[name] < 1.15


def test_flops_agree_with_torchs_counter():
    from torch.utils.flop_counter import FlopCounterMode

    model, length = tiny(), 16
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(tokens(1, length), use_cache=False)
    # eager attention computes the whole square; the account counts the causal half (position i sees i)
    ours = sum(flops_per_token(model.config, length) for _ in range(length))
    assert counter.get_total_flops() == ours
    causal = sum(flops_per_token(model.config, i + 1, head=False) for i in range(length))
    head = 2 * 97 * 32
    assert forward_flops(model.config, length, 1) == causal + head
    assert flops_per_token(model.config, 8, training=True) == 3 * flops_per_token(model.config, 8)


def test_kv_bytes_agree_with_the_cache():
    model = tiny()
    cache = model(tokens(1, 10), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 10 * kv_bytes_per_token(model.config, dtype_bytes=4)


def test_zero_init_starts_as_the_identity():
    model = tiny(zero_init_projections=True)
    out = model.model(tokens(), output_hidden_states=True)
    assert torch.equal(out.hidden_states[0], out.hidden_states[1])
    assert model.model.layers[0].self_attn.q_proj.weight.std() > 0.01


def test_bad_shapes_are_refused_together():
    with pytest.raises(ValueError, match="num_key_value_heads is 3, allowed: a divisor") as error:
        CairnConfig(**{**SHAPE, "num_key_value_heads": 3, "head_dim": 7})
    assert "head_dim is 7, allowed: an even number" in str(error.value)
    with pytest.raises(ValueError, match=r"unknown preset '10n' \(did you mean 10m\?\)"):
        preset_config("10n")
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        tiny().model()


def test_config_is_readable_json(tmp_path):
    tiny().config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "cairn" and saved["rope_theta"] == 10000.0
