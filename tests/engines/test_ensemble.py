"""Adapters that write together: each token comes from the mean of their distributions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cairn.engines.adapters import load_merged
from cairn.engines.base import GenerationRequest, Sampling
from cairn.engines.decoding import mean_logits
from cairn.engines.torch_engine import TorchEngine
from cairn.errors import EngineError
from cairn.models.tokenization import prompt_ids
from tests.engines.tiny_models import save_adapter, save_base

PROMPTS = ["Mary went to", "Where is the milk? The answer is", "Daniel"]
SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    root = tmp_path_factory.mktemp("ensemble")
    base = save_base(root / "base")
    return base, {name: save_adapter(root / name, base, seed) for seed, name in enumerate("abc", start=1)}


def by_hand(base: Path, folders: list[Path], prompt: str) -> list[int]:
    """Greedy tokens from the mean of the softmaxes, one whole forward pass a token, without a cache."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    members = [load_merged(AutoModelForCausalLM.from_pretrained(base), "x", folder) for folder in folders]
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = prompt_ids(tokenizer, prompt)
    read = len(ids)
    with torch.inference_mode():
        while len(ids) - read < SHORT.max_new_tokens:
            mean = torch.stack([one(torch.tensor([ids])).logits[0, -1].softmax(-1) for one in members]).mean(0)
            ids.append(int(mean.argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return ids[read:]


@pytest.mark.parametrize("merge", [True, False])
def test_an_ensemble_writes_what_the_mean_of_the_distributions_says(
    parts: tuple[Path, dict[str, Path]], merge: bool
) -> None:
    base, adapters = parts
    engine = TorchEngine(base, adapters, device="cpu", dtype="float32", merge=merge)
    assert engine.capabilities.ensembles
    mixed = [GenerationRequest(prompt, None, SHORT, None, ("a", "b")) for prompt in PROMPTS]
    mixed += [GenerationRequest(PROMPTS[0], "a", SHORT), GenerationRequest(PROMPTS[0], None, SHORT)]
    together = engine.generate(mixed)
    wanted = [by_hand(base, [adapters["a"], adapters["b"]], prompt) for prompt in PROMPTS]
    ends = engine.tokenizer.eos_token_id
    for made, tokens in zip(together, wanted, strict=False):
        kept = tokens[:-1] if tokens[-1] == ends else tokens
        assert made.text == engine.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert made.new_tokens == len(tokens)
    alone = engine.generate([GenerationRequest(PROMPTS[0], "a", SHORT)])[0]
    assert together[3].text == alone.text  # neighbours change nothing
    assert together[0].text not in (alone.text, together[4].text)  # and here the mean is neither of them
    assert "".join(engine.stream(mixed[0])) == together[0].text


def test_an_ensemble_of_one_and_of_the_same_adapter_is_that_adapter(parts: tuple[Path, dict[str, Path]]) -> None:
    base, adapters = parts
    engine = TorchEngine(base, adapters, device="cpu", dtype="float32")
    single = [made.text for made in engine.generate([GenerationRequest(prompt, "b", SHORT) for prompt in PROMPTS])]
    for members in (("b",), ("b", "b")):
        requests = [GenerationRequest(prompt, None, SHORT, None, members) for prompt in PROMPTS]
        assert [made.text for made in engine.generate(requests)] == single


def test_mean_logits_are_the_logarithm_of_the_mean_distribution() -> None:
    logits = [torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    wanted = torch.stack([one.softmax(-1) for one in logits]).mean(0)
    assert torch.allclose(mean_logits(logits).softmax(-1), wanted, atol=1e-6)
    assert mean_logits(logits[:1]) is logits[0]


def test_members_must_be_loaded_and_alone(parts: tuple[Path, dict[str, Path]]) -> None:
    engine = TorchEngine(parts[0], parts[1], device="cpu", dtype="float32")
    with pytest.raises(EngineError, match="this adapter is not loaded.*'d'"):
        engine.generate([GenerationRequest("Mary", None, SHORT, None, ("a", "d"))])
    with pytest.raises(EngineError, match="an ensemble runs its own adapters: 'a'"):
        engine.generate([GenerationRequest("Mary", "a", SHORT, None, ("a", "b"))])
