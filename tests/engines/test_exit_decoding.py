"""Early exit writes what an uncached reference chooses, and self-speculation what the full model writes."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model

from cairn.engines.base import Constraint, GenerationRequest, Sampling, ScoreRequest
from cairn.engines.exit_decoding import ExitDecoding
from cairn.engines.exit_engine import ExitEngine, exit_cuts
from cairn.engines.torch_engine import TorchEngine
from cairn.errors import EngineError
from cairn.identity import ADAPTER_CARD, base_identity
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.tokenization import prompt_ids
from tests.engines.tiny_models import tiny_tokenizer

PROMPTS = ["Mary went to", "Sandra moved to the garden. Daniel", "Where is the milk? The answer", "John"]
VARIANTS = {
    "plain": {},
    "value residual": {"value_residual": True, "qk_norm": True},
    "own norms, softcap": {"early_exit": {"layers": [1, 3], "norm": "own"}, "logit_softcap": 12.0},
    "gates": {"early_exit": {"layers": [1, 3], "gate": True}},
    "repeated blocks": {"sharing": {"blocks": {"repeat": 2}}},
}
THRESHOLD = 0.2  # of these random models: some tokens leave at each exit


def tiny(seed=0, **changes):
    """Returns a model whose exits often agree with its end, as those of a trained one do."""
    torch.manual_seed(seed)
    config = CairnConfig(**{
        "vocab_size": 360, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 96, "initializer_range": 0.25,
        "early_exit": {"layers": [1, 3]}, **changes,
    })
    model = CairnForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # gains of one would hide a wrong norm
            weight.data.uniform_(0.8, 1.6)
        if "gate" in name:  # some states pass, some do not
            weight.data.normal_(0, 0.5)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data.mul_(0.4)
    return model


def engine(model=None, adapters=None, merge="auto", **exits):
    options = {"tokenizer": tiny_tokenizer(), "device": "cpu", "merge": merge}
    if not exits:
        return TorchEngine(tiny() if model is None else model, adapters, **options)
    return ExitEngine(tiny() if model is None else model, adapters, exits=ExitDecoding(**exits), **options)


def requests(tokens=10, **sampling):
    return [GenerationRequest(prompt, sampling=Sampling(max_new_tokens=tokens, **sampling)) for prompt in PROMPTS]


def texts(one, wanted):
    return [(made.text, made.new_tokens, made.finish) for made in one.generate(wanted)]


def sureness(model, layer, state, logits):
    """Returns what the gate guesses, or else the probability of the likeliest token."""
    gates = getattr(model.model, "exit_gates", None)
    return logits.softmax(-1).max() if gates is None else gates[str(layer)](state)[0]


@torch.no_grad()
def reference(model, tokenizer, prompt, cuts, threshold, tokens):
    """Chooses each token by running everything anew, without any cache; returns tokens and their exits."""
    ids, exits = list(prompt_ids(tokenizer, prompt)), []
    start = len(ids)
    for _ in range(tokens):
        for layer in cuts[1:]:
            state = model.model(input_ids=torch.tensor([ids]), use_cache=False, exit_layer=layer).last_hidden_state
            logits = model.lm_head(state)[0, -1]
            if layer < cuts[-1] and sureness(model, layer, state[0, -1], logits) >= threshold:
                break
        ids.append(int(logits.argmax()))
        exits.append(layer)
        if ids[-1] == tokenizer.eos_token_id:
            break
    return ids[start:], exits


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_token_is_that_of_an_uncached_reference(variant):
    model = tiny(**VARIANTS[variant])
    early = engine(model, threshold=THRESHOLD)
    used = set()
    for request, prompt in zip(requests(), PROMPTS, strict=True):
        wanted, exits = reference(model, early.tokenizer, prompt, early.cuts, THRESHOLD, 10)
        before = early.exit_usage.tokens.copy()
        row = early._row(request)
        for _ in early._steps((None,), [row]):
            pass
        assert row.new == wanted
        assert early.exit_usage.tokens - before == {layer: exits.count(layer) for layer in set(exits)}
        used |= set(exits)
    assert len(used) > 1, "some tokens leave early and some do not, or the test shows little"


def test_threshold_above_one_writes_and_scores_as_the_full_model():
    model = tiny()
    full, early = engine(model), engine(model, threshold=1.1)
    assert texts(early, requests()) == texts(full, requests())
    assert early.exit_usage.tokens.keys() == {4}
    wanted = [ScoreRequest(prompt, " the kitchen.") for prompt in PROMPTS]
    for ours, theirs in zip(early.loglikelihood(wanted), full.loglikelihood(wanted), strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("gate", [False, True])
def test_batch_writes_what_rows_write_alone(attention, gate):
    model = tiny(early_exit={"layers": [1, 3], "gate": gate})
    model.set_attn_implementation(attention)
    early = engine(model, threshold=THRESHOLD)
    mixed = [*requests(9), *requests(4, temperature=0.9, seed=3), *requests(12, stop=("a",))]
    alone = [texts(early, [request])[0] for request in mixed]
    assert texts(early, mixed) == alone
    assert len({new for _, new, _ in alone}) > 2, "rows leave the batch at different times"


def test_shared_beginning_is_read_once_and_changes_nothing():
    early = engine(threshold=THRESHOLD)
    shown = "Mary went to the kitchen. John took the milk. " * 2
    asked = [GenerationRequest(shown + prompt, sampling=Sampling(max_new_tokens=8)) for prompt in PROMPTS]
    assert texts(early, asked) == [texts(early, [request])[0] for request in asked]


@pytest.mark.parametrize("gate", [False, True])
def test_scores_are_of_what_is_written(gate):
    """The probability of each written token is that of the exit which wrote it."""
    model = tiny(early_exit={"layers": [1, 3], "gate": gate})
    early = engine(model, threshold=THRESHOLD)
    tokenizer = early.tokenizer
    ids = prompt_ids(tokenizer, PROMPTS[1])
    logits = early._forward(None, input_ids=torch.tensor([ids]), use_cache=False).logits
    for place in range(2, len(ids)):
        with torch.no_grad():
            for layer in early.cuts[1:]:
                out = model.model(torch.tensor([ids[: place + 1]]), use_cache=False, exit_layer=layer)
                alone = model.lm_head(out.last_hidden_state)[0, -1]
                state = out.last_hidden_state[0, -1]
                if layer == 4 or sureness(model, layer, state, alone) >= THRESHOLD:
                    break
        assert (logits[0, place] - alone).abs().max() < 1e-4
    assert sum(early.exit_usage.tokens.values()) == len(ids)


@pytest.mark.parametrize(("variant", "draft_tokens"), [*((name, 5) for name in VARIANTS), ("plain", 1)])
def test_speculation_writes_the_full_models_tokens(variant, draft_tokens):
    drafted = kept = 0
    for seed in range(2):
        model = tiny(seed, **VARIANTS[variant])
        full = engine(model)
        fast = engine(model, mode="speculative", threshold=0.05, draft_tokens=draft_tokens, layers=(1,))
        wanted = [*requests(20), *requests(20, stop=("th",))[:1], *requests(1)[:1]]
        assert [texts(fast, [request])[0] for request in wanted] == texts(full, wanted)
        drafted, kept = drafted + fast.exit_usage.drafted, kept + fast.exit_usage.kept
    assert 0 < kept < drafted, "some drafts are kept and some are wrong, or the test shows little"


def test_speculation_changes_neither_samples_nor_choices_nor_batches_nor_scores():
    model = tiny()
    full, fast = engine(model), engine(model, mode="speculative", threshold=0.05)
    held = [
        GenerationRequest(prompt, sampling=Sampling(max_new_tokens=8), constraint=Constraint(("kitchen", "garden")))
        for prompt in PROMPTS
    ]
    for wanted in (requests(), requests(temperature=0.8, seed=1), held, held[:1]):
        assert texts(fast, wanted) == texts(full, wanted)
    asked = [ScoreRequest(prompt, " the kitchen.") for prompt in PROMPTS]
    assert fast.loglikelihood(asked) == full.loglikelihood(asked)


def test_choices_hold_under_a_threshold():
    early = engine(threshold=THRESHOLD)
    held = Constraint(("kitchen", "garden"))
    made = early.generate([GenerationRequest(prompt, constraint=held) for prompt in PROMPTS])
    assert {one.text for one in made} <= {" kitchen", " garden"}


def test_stream_gives_the_text_of_generate():
    for exits in ({"threshold": THRESHOLD}, {"mode": "speculative", "threshold": 0.05}):
        early = engine(**exits)
        for request in requests():
            assert "".join(early.stream(request)) == early.generate([request])[0].text


@pytest.fixture
def adapted(tmp_path):
    """A base folder and two adapters that change what it says."""
    base = tmp_path / "base"
    tiny().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    adapters = {}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(tiny(), lora).save_pretrained(tmp_path / name)
        (tmp_path / name / ADAPTER_CARD).write_text(json.dumps({"base": base_identity(base), "stage": name}))
        adapters[name] = tmp_path / name
    return base, adapters


@pytest.mark.parametrize("exits", [{"threshold": 0.3}, {"mode": "speculative", "threshold": 0.05}])
def test_adapters_mixed_merged_and_beside_the_base(adapted, exits):
    base, adapters = adapted
    wanted = [
        GenerationRequest(prompt, adapter=name, sampling=Sampling(max_new_tokens=8))
        for prompt in PROMPTS for name in (None, "one", "two")
    ]  # fmt: skip
    options = {"device": "cpu", "dtype": "float32"}
    sides = [
        ExitEngine(str(base), adapters, exits=ExitDecoding(**exits), merge=merge, **options) for merge in (True, False)
    ]
    assert texts(sides[0], wanted) == texts(sides[1], wanted)
    alone = [texts(sides[1], [request])[0] for request in wanted]
    assert texts(sides[1], wanted) == alone
    assert len({text for text, _, _ in alone}) > len(PROMPTS)
    if exits.get("mode") == "speculative":
        assert alone == texts(TorchEngine(str(base), adapters, merge=False, **options), wanted)


@pytest.mark.parametrize(
    ("changes", "exits", "message"),
    [
        ({"early_exit": None}, {}, "not trained for early exit"),
        ({}, {"layers": (2,)}, r"not exits of the model: \[2\]. Allowed: rising numbers out of 1, 3"),
        ({"early_exit": None}, {"layers": (4,)}, "rising numbers out of 1, 2, 3"),
        ({}, {"layers": (3, 1)}, "rising numbers"),
        ({}, {"mode": "speculative", "layers": (1, 3)}, "a draft comes from one exit"),
        ({}, {"judge": "gate"}, "the exits of this model have no gate"),
    ],
)
def test_wrong_exits_are_refused_before_anything_runs(changes, exits, message):
    with pytest.raises(EngineError, match=message):
        exit_cuts(tiny(**changes).config, ExitDecoding(**exits))


def test_models_without_exits_and_ensembles_are_refused():
    from tests.engines.tiny_models import tiny_llama

    with pytest.raises(EngineError, match="cannot answer early"):
        engine(tiny_llama(), threshold=0.5)
    early = engine(threshold=0.5)
    assert early.capabilities.early_exit and not early.capabilities.ensembles
    assert not engine().capabilities.early_exit


def test_cuts_follow_mode_and_model():
    config = tiny().config
    assert exit_cuts(config, ExitDecoding()) == (0, 1, 3, 4)
    assert exit_cuts(config, ExitDecoding(mode="speculative")) == (0, 1, 4)
    assert exit_cuts(tiny(early_exit=None).config, ExitDecoding(layers=(2,))) == (0, 2, 4)
    assert all(low < high for low, high in pairwise(exit_cuts(config, ExitDecoding(layers=(3,)))))
