"""Byte-pooled models through everything that knows nothing of them: generate, engine, LoRA, stack, harness, folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from cairn.bases import load_base
from cairn.engines import decoding
from cairn.engines.base import Constraint, GenerationRequest, Sampling, ScoreRequest
from cairn.engines.torch_engine import TorchEngine
from cairn.errors import InputError
from cairn.evaluation.harness_lm import HarnessModel
from cairn.evaluation.suites import bits_per_byte
from cairn.identity import ADAPTER_CARD, base_identity
from cairn.models import CairnForCausalLM
from cairn.models.tokenization import byte_ids, byte_tokenizer, prompt_ids
from cairn.stacks.runner import Runner
from cairn.stacks.spec import load_stack
from cairn.training.finetune_plan import LoraSettings
from cairn.training.lora import quick_training, with_adapter
from cairn.training.objectives import completion, next_token
from tests.models.byte_models import RULES, TEXT, byte_model, rows
from tests.stacks.stack_yaml import INPUTS, write_stack

PROMPTS = ["a", "The cat, naïve 🙂", "Where is the milk?\nJohn took\0 it", "yes yes  yes yes yes"]
ADAPTERS = ("mention", "link", "answer")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a learned rule, attention pooling and n-grams, and three adapters for it."""
    root = tmp_path_factory.mktemp("bytes")
    base = byte_model("learned", pooling="attention", pooling_heads=2, ngram_sizes=[3], ngram_rows=64)
    base.save_pretrained(root / "base")
    byte_tokenizer(model_max_length=256).save_pretrained(root / "base")
    card = json.dumps({"base": base_identity(str(root / "base"))})
    for seed, name in enumerate(ADAPTERS):
        torch.manual_seed(seed)
        model = CairnForCausalLM.from_pretrained(root / "base")
        config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(root / name)
        (root / name / ADAPTER_CARD).write_text(card)
    return root


def engine_of(folders: Path, **settings: Any) -> TorchEngine:
    adapters = {name: folders / name for name in ADAPTERS}
    return TorchEngine(str(folders / "base"), adapters, dtype="float32", device="cpu", **settings)


@pytest.fixture(scope="module")
def merged(folders: Path) -> TorchEngine:
    return engine_of(folders, merge=True)


@pytest.mark.parametrize("rule", RULES)
def test_generate_with_and_without_cache_and_in_any_batch(rule: str) -> None:
    model = byte_model(rule)
    prompts = [torch.tensor(prompt_ids(byte_tokenizer(), prompt)) for prompt in PROMPTS]
    width = max(map(len, prompts))
    ids = torch.stack([torch.cat([torch.zeros(width - len(row), dtype=torch.long), row]) for row in prompts])
    settings = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    together = model.generate(ids, attention_mask=(ids > 0).long(), **settings)[:, width:]
    for row, prompt in enumerate(prompts):
        alone = model.generate(prompt[None], use_cache=False, **settings)[0, len(prompt) :]
        assert torch.equal(together[row, : len(alone)], alone)


@pytest.mark.parametrize("rule", ["learned", "none"])
def test_beams_reorder_the_cache(rule: str) -> None:
    model, ids = byte_model(rule), rows(1)[:, :20]
    settings = {"num_beams": 3, "max_new_tokens": 10, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **settings), model.generate(ids, use_cache=False, **settings))


@pytest.mark.parametrize("rule", RULES)
def test_our_decoding_writes_what_generate_writes(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_WORTH_SHARING", 4)  # what all prompts begin with is read once
    model, tokenizer = byte_model(rule), byte_tokenizer()
    engine = TorchEngine(model, tokenizer=tokenizer)
    sampling = Sampling(max_new_tokens=12)
    prompts = [f"The {prompt}" for prompt in PROMPTS]
    made = engine.generate([GenerationRequest(prompt, None, sampling) for prompt in prompts])
    for prompt, one in zip(prompts, made, strict=True):
        ids = prompt_ids(tokenizer, prompt)
        out = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=2)[0, len(ids) :]
        assert one.text == tokenizer.decode(out, skip_special_tokens=True)
        assert "".join(engine.stream(GenerationRequest(prompt, None, sampling))) == one.text


def test_text_is_streamed_character_by_character() -> None:
    """A whole character is not held back although every token is a byte; half of one is."""
    tokenizer = byte_tokenizer()
    seen = [decoding.settled_text(tokenizer, byte_ids("aé".encode())[:n], frozenset({2})) for n in (1, 2, 3)]
    assert seen == ["a", "a", "aé"]


def test_scores_are_those_of_one_pass_and_add_up(merged: TorchEngine) -> None:
    pairs = [(prompt, tail) for prompt in PROMPTS for tail in (" yes", "🙂", "\0")]
    asked = [ScoreRequest(*pair, name) for pair in pairs for name in (None, *ADAPTERS)]
    for one, score in zip(asked, merged.loglikelihood(asked), strict=True):
        assert merged.loglikelihood([one])[0].logprob == pytest.approx(score.logprob, abs=1e-4)
        assert score.tokens == len(one.continuation.encode())
    for prompt, tail in pairs:
        whole, first, rest = merged.loglikelihood(
            [ScoreRequest("", prompt + tail), ScoreRequest("", prompt), ScoreRequest(prompt, tail)]
        )
        assert whole.logprob == pytest.approx(first.logprob + rest.logprob, abs=1e-3)


def test_bits_per_byte_counts_raw_bytes(folders: Path, merged: TorchEngine) -> None:
    model, tokenizer = load_base(str(folders / "base"), dtype="float32", device="cpu")
    found = bits_per_byte(merged, [TEXT, "", "é"], context=256)
    nats = 0.0
    for text in (TEXT, "é"):
        ids = torch.tensor([prompt_ids(tokenizer, text)])
        with torch.no_grad():
            scores = model(ids).logits[0, :-1].log_softmax(-1)
        nats -= float(scores.gather(1, ids[0, 1:, None]).sum())
    size = len(TEXT.encode()) + 2
    assert (found["bytes"], found["tokens"], found["lossless"]) == (size, size, True)
    assert found["bits_per_byte"] == pytest.approx(nats / size / 0.6931471805599453, rel=1e-5)
    long = bits_per_byte(merged, [TEXT * 6], context=40, stride=10)  # windows of their own patches
    assert long["tokens"] == 6 * len(TEXT.encode())


def test_harness_scores_through_the_engine(merged: TorchEngine) -> None:
    harness = HarnessModel(merged)
    requests = [SimpleNamespace(args=pair, doc={}) for pair in [("The cat ", "sat"), ("", "🙂 ran"), ("a\n", " b")]]
    found = harness.loglikelihood(requests)
    plain = merged.loglikelihood(
        [ScoreRequest("The cat", " sat"), ScoreRequest("", "🙂 ran"), ScoreRequest("a", "\n b")]
    )
    assert [logprob for logprob, _ in found] == pytest.approx([score.logprob for score in plain], abs=1e-4)
    rolling = harness.loglikelihood_rolling([SimpleNamespace(args=("🙂 ran",), doc={})])
    assert rolling == pytest.approx([plain[1].logprob], abs=1e-4)


def test_adapters_mixed_alone_merged_and_beside_are_the_same(folders: Path, merged: TorchEngine) -> None:
    beside = engine_of(folders, merge=False)
    asked = [GenerationRequest(p, name, Sampling(max_new_tokens=8)) for p in PROMPTS for name in (None, *ADAPTERS)]
    texts = [made.text for made in merged.generate(asked)]
    assert texts == [made.text for made in beside.generate(asked)]
    assert texts == [merged.generate([one])[0].text for one in asked]
    assert len(set(texts)) > len(PROMPTS)  # the adapters do change something
    plain = PeftModel.from_pretrained(CairnForCausalLM.from_pretrained(folders / "base"), folders / "link").eval()
    with torch.no_grad():
        logprobs = plain(torch.tensor([prompt_ids(merged.tokenizer, "ab")])).logits[0, :-1].log_softmax(-1)
    expected = float(logprobs.gather(1, torch.tensor(byte_ids(b"ab"))[:, None]).sum())
    assert beside.loglikelihood([ScoreRequest("", "ab", "link")])[0].logprob == pytest.approx(expected, abs=1e-4)


def test_a_stack_of_adapters_runs_on_a_byte_base(folders: Path, merged: TorchEngine, tmp_path: Path) -> None:
    spec = load_stack(write_stack(tmp_path))
    other = {"story": "Mary went to the garden 🙂. John took it.", "question": "Who took it?"}
    traces = Runner(spec, merged).run([INPUTS, other])
    assert [call.prompt_tokens for trace in traces for call in trace.stage("mention").calls]
    assert traces[1].answer == Runner(spec, merged).run([other])[0].answer
    choice = merged.generate(
        [GenerationRequest("Is it?", "answer", Sampling(max_new_tokens=6), Constraint(("a", "é")))]
    )
    assert choice[0].text in (" a", " é")


@pytest.mark.parametrize("autocast", [False, True])
def test_an_adapter_trains_in_every_part(autocast: bool) -> None:
    model = byte_model("learned", pooling="attention", pooling_heads=2)
    batch = {"input_ids": rows()[:, :-1], "labels": rows()[:, 1:].clone()}
    batch["labels"][:, :20] = -100
    with with_adapter(model, LoraSettings(rank=2), seed=0) as adapter:
        adapter.train()
        for name, weight in adapter.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            plain = next_token(adapter, batch)[0]
            with quick_training(model, autocast=autocast):
                quick = completion(adapter, batch)[0]
                quick.backward()
        assert quick.item() == pytest.approx(plain.item(), rel=2e-2 if autocast else 1e-4)
        trained = {name.split(".model.model.")[1].split(".")[0] for name, weight in adapter.named_parameters()
                   if weight.grad is not None and weight.grad.abs().sum() > 0}  # fmt: skip
    assert trained == {"local_encoder", "rule", "pooling", "to_core", "core", "from_core", "local_decoder"}


def test_bad_requests_are_refused(merged: TorchEngine) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        merged.generate([GenerationRequest("")])
    with pytest.raises(InputError, match=r"longer than the model's context: 10000\d tokens"):
        merged.generate([GenerationRequest("x" * 100_000)])
    assert merged.loglikelihood_rolling(["x y" * 10_000])[0].tokens == 30_000
    with pytest.raises(ValueError, match="half of a character"):
        merged.generate([GenerationRequest("a\udcff")])


def test_code_travels_with_the_checkpoint(tmp_path: Path) -> None:
    """A process that cannot import cairn loads the folder with trust_remote_code, scores and writes the same."""
    model = byte_model("entropy", pooling="attention", pooling_heads=2, ngram_sizes=[2])
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")  # boundaries must survive the smaller numbers
    ids = rows()
    with torch.no_grad():
        expected = model.float()(ids).logits
    torch.save((ids, expected, model.generate(ids, max_new_tokens=5, do_sample=False)), tmp_path / "expected.pt")
    script = f"""
import sys
sys.modules["cairn"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True, dtype=torch.float32)
ids, expected, written = torch.load({str(tmp_path / "expected.pt")!r})
out = model.generate(ids, max_new_tokens=5, do_sample=False)
print(type(model.model).__module__, float((model(ids).logits - expected).abs().max()), torch.equal(out, written))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    module, difference, same = done.stdout.strip().split(" ")
    assert module.startswith("transformers_modules.") and float(difference) < 1e-5 and same == "True"
