"""The torch engine: the same tokens and scores as transformers and PEFT by themselves, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from cairn.engines.base import Constraint, Engine, GenerationRequest, Sampling, ScoreRequest
from cairn.engines.torch_engine import TorchEngine
from cairn.errors import AdapterError, CheckpointError, EngineError, InputError, TokenizerError
from cairn.models.tokenization import completion_ids, prompt_ids
from tests.engines.tiny_models import TEXTS, save_adapter, save_base, tiny_llama, tiny_tokenizer

PROMPTS = ["Mary went", "Where is the milk? John took", "Sandra moved to the garden. none", "yes"]
NAMES = (None, "x", "y")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("engine")
    base = save_base(root / "base")
    return {
        "base": base,
        **{name: save_adapter(root / name, base, seed) for seed, name in enumerate(("x", "y"), start=1)},
    }


def engine_of(folders: dict[str, Path], **settings: Any) -> TorchEngine:
    adapters = {name: folders[name] for name in ("x", "y")}
    return TorchEngine(str(folders["base"]), adapters, dtype="float32", device="cpu", **settings)


@pytest.fixture(scope="module")
def merged(folders: dict[str, Path]) -> TorchEngine:
    return engine_of(folders, merge=True)


@pytest.fixture(scope="module")
def beside(folders: dict[str, Path]) -> TorchEngine:
    return engine_of(folders, merge=False)


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> dict[str | None, Any]:
    """The same models through transformers and PEFT alone."""
    return {name: _plain(folders, name) for name in NAMES}


def _plain(folders: dict[str, Path], adapter: str | None) -> Any:
    model = LlamaForCausalLM.from_pretrained(folders["base"]).eval()
    return model if adapter is None else PeftModel.from_pretrained(model, folders[adapter]).eval()


def requests(**sampling: Any) -> list[GenerationRequest]:
    return [GenerationRequest(prompt, name, Sampling(**sampling)) for prompt in PROMPTS for name in NAMES]


def test_it_is_an_engine(merged: TorchEngine) -> None:
    assert isinstance(merged, Engine)
    assert merged.adapters() == ["x", "y"]
    assert merged.capabilities.context_tokens == 96


@pytest.mark.parametrize("which", ["merged", "beside"])
def test_same_tokens_as_transformers_generate(which: str, plain: dict[str | None, Any], request: Any) -> None:
    engine: TorchEngine = request.getfixturevalue(which)
    asked = requests(max_new_tokens=12)
    got = engine.generate(asked)
    for name in NAMES:
        model = plain[name]
        for one, made in zip(asked, got, strict=True):
            if one.adapter != name:
                continue
            ids = prompt_ids(engine.tokenizer, one.prompt)
            out = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
            expected = engine.tokenizer.decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert (made.text, made.new_tokens, made.prompt_tokens) == (expected, len(out), len(ids))
            assert made.finish == ("stop" if out[-1] == 2 else "length")
    assert len({made.text for made in got}) > len(PROMPTS)  # the adapters do change something


def test_mixed_batch_equals_each_alone(merged: TorchEngine) -> None:
    asked = [
        *requests(max_new_tokens=9),
        *requests(max_new_tokens=5, temperature=1.5, seed=3, top_k=20),
        *requests(max_new_tokens=7, temperature=2.0, seed=4, top_p=0.8),
    ]
    together = merged.generate(asked)
    alone = [merged.generate([one])[0] for one in asked]
    assert [made.text for made in together] == [made.text for made in alone]
    assert len({made.text for made in together}) > len(asked) // 2


def test_sampling_follows_its_seed(merged: TorchEngine) -> None:
    def text(seed: int) -> str:
        return merged.generate([GenerationRequest("Mary", None, Sampling(temperature=2.0, seed=seed))])[0].text

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_top_k_of_one_and_tiny_top_p_are_greedy(merged: TorchEngine) -> None:
    greedy = [made.text for made in merged.generate(requests(max_new_tokens=6))]
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
        assert [m.text for m in merged.generate(requests(max_new_tokens=6, temperature=1.0, **narrow))] == greedy


def test_many_small_batches_equal_one(folders: dict[str, Path], merged: TorchEngine) -> None:
    small = engine_of(folders, batch_tokens=1)
    asked = requests(max_new_tokens=6)
    assert [m.text for m in small.generate(asked)] == [m.text for m in merged.generate(asked)]


def test_scores_equal_peft_and_do_not_depend_on_the_batch(
    plain: dict[str | None, Any], merged: TorchEngine, beside: TorchEngine
) -> None:
    asked = [ScoreRequest(p, c, name) for p in PROMPTS for c in (" to the kitchen.", " yes") for name in NAMES]
    together, unmerged = merged.loglikelihood(asked), beside.loglikelihood(asked)
    for one, score, other in zip(asked, together, unmerged, strict=True):
        ids = prompt_ids(merged.tokenizer, one.context)
        target = merged.tokenizer(one.continuation, add_special_tokens=False).input_ids
        with torch.inference_mode():
            logits = plain[one.adapter](input_ids=torch.tensor([ids + target])).logits[0]
        logprobs = logits.log_softmax(-1)
        expected = sum(float(logprobs[len(ids) + i - 1, token]) for i, token in enumerate(target))
        assert score.logprob == pytest.approx(expected, abs=1e-4)
        assert other.logprob == pytest.approx(expected, abs=1e-4)
        assert score.tokens == len(target)
        assert merged.loglikelihood([one])[0].logprob == pytest.approx(score.logprob, abs=1e-5)


def test_choices_of_one_token_read_their_prompt_once(folders: dict[str, Path], merged: TorchEngine) -> None:
    engine = engine_of(folders)
    words = [text for text in (" to", " yes", " the", " none") if len(completion_ids(engine.tokenizer, text)) == 2]
    assert len(words) > 1
    asked = [ScoreRequest(prompt, word, "x") for prompt in PROMPTS for word in words]
    asked.append(ScoreRequest(PROMPTS[0], words[0]))  # the base: another model, another reading
    scores = engine.loglikelihood(asked)
    read = [len(prompt_ids(engine.tokenizer, prompt)) for prompt in PROMPTS]
    assert engine.usage.calls == len(PROMPTS) + 1 and engine.usage.prompt_tokens == sum(read) + read[0]
    for one, score in zip(asked, scores, strict=True):
        assert score.logprob == pytest.approx(merged.loglikelihood([one])[0].logprob, abs=1e-5)


def test_greedy_output_is_scored_as_greedy(merged: TorchEngine) -> None:
    likeliest = {}
    for prompt in PROMPTS:
        with torch.inference_mode():
            logits = merged._forward("x", input_ids=torch.tensor([prompt_ids(merged.tokenizer, prompt)])).logits[0, -1]
        likeliest[prompt] = next(  # the first token that is a text of its own
            text for text in map(merged.tokenizer.decode, logits.argsort(descending=True).tolist()) if text.isascii()
        ), merged.tokenizer.decode(logits.argmax())
    for prompt, (text, first) in likeliest.items():
        assert merged.loglikelihood([ScoreRequest(prompt, " office", "x")])[0].greedy is (first == " office")
        assert merged.loglikelihood([ScoreRequest(prompt, text, "x")])[0].greedy is (first == text)
    assert any(first == text for text, first in likeliest.values())


def test_rolling_scores_every_token_once(merged: TorchEngine) -> None:
    short, long = TEXTS[0], TEXTS[0] * 5  # the long one needs several windows of the context
    scores = merged.loglikelihood_rolling([short, long], adapter="x")
    assert scores[0].logprob == pytest.approx(merged.loglikelihood([ScoreRequest("", short, "x")])[0].logprob, abs=1e-4)
    assert scores[1].tokens == len(merged.tokenizer(long, add_special_tokens=False).input_ids) > 96


def test_stream_gives_the_same_text(merged: TorchEngine, beside: TorchEngine) -> None:
    for one in requests(max_new_tokens=10):
        expected = merged.generate([one])[0].text
        pieces = list(beside.stream(one))
        assert "".join(pieces) == expected
    assert any(len(list(merged.stream(one))) > 1 for one in requests(max_new_tokens=10))


def test_stop_text_ends_the_output(merged: TorchEngine) -> None:
    whole = merged.generate([GenerationRequest("Mary went", "x", Sampling(max_new_tokens=12))])[0].text
    stop = whole[3:5]
    request = GenerationRequest("Mary went", "x", Sampling(max_new_tokens=12, stop=("never there", stop)))
    made = merged.generate([request])[0]
    assert made.text == whole[: whole.index(stop)]
    assert made.finish == "stop"
    assert "".join(merged.stream(request)) == made.text


def test_constraint_holds_the_output_to_its_choices(merged: TorchEngine) -> None:
    choices = Constraint(("yes", "no", "none"))
    asked = [GenerationRequest(p, n, Sampling(max_new_tokens=8), choices) for p in PROMPTS for n in NAMES]
    for one, made in zip(asked, merged.generate(asked), strict=True):
        assert made.text in (" yes", " no", " none")
        scores = merged.loglikelihood([ScoreRequest(one.prompt, f" {c}", one.adapter) for c in choices.choices])
        assert len(scores) == 3
        assert made.finish == "stop"
    with pytest.raises(InputError, match="choices do not fit the output"):
        merged.generate([GenerationRequest("x", None, Sampling(max_new_tokens=1), choices)])


def test_the_right_adapter_runs_after_an_exception(beside: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {name: GenerationRequest("Mary went", name, Sampling(max_new_tokens=5)) for name in NAMES}
    expected = {name: beside.generate([one])[0].text for name, one in asked.items()}
    assert len(set(expected.values())) == len(NAMES)
    layer = beside.model.model.layers[1]

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of luck")

    for failing in NAMES:
        with monkeypatch.context() as patch:
            patch.setattr(layer, "forward", broken)
            with pytest.raises(RuntimeError, match="out of luck"):
                beside.generate([asked[failing]])
        for name in NAMES:
            assert beside.generate([asked[name]])[0].text == expected[name]


def test_a_stream_left_half_way_does_not_disturb_others(beside: TorchEngine) -> None:
    prompt, sampling = "Where is the milk? John took", Sampling(max_new_tokens=8)
    requests_ = {name: GenerationRequest(prompt, name, sampling) for name in NAMES}
    expected = {name: beside.generate([one])[0].text for name, one in requests_.items()}
    streams = {name: beside.stream(one) for name, one in requests_.items()}
    texts = dict.fromkeys(NAMES, "")
    for _ in range(20):  # all three in turn, one token each
        for name, stream in streams.items():
            texts[name] += next(stream, "")
    assert texts == expected


def test_usage_counts_tokens(folders: dict[str, Path]) -> None:
    engine = engine_of(folders)
    made = engine.generate(requests(max_new_tokens=3))
    assert engine.usage.calls == len(made)
    assert engine.usage.prompt_tokens == sum(m.prompt_tokens for m in made)
    assert engine.usage.new_tokens == sum(m.new_tokens for m in made)
    assert engine.count_tokens("Mary went") == made[0].prompt_tokens


def test_bad_requests_are_refused(merged: TorchEngine) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        merged.generate([GenerationRequest(" \n")])
    with pytest.raises(InputError, match=r"longer than the model's context: \d+ tokens.*96 tokens, 32 of them"):
        merged.generate([GenerationRequest("Mary went " * 60)])
    with pytest.raises(InputError, match="longer than the model's context"):
        merged.loglikelihood([ScoreRequest("Mary went " * 60, " yes")])
    with pytest.raises(InputError, match="nothing to score"):
        merged.loglikelihood([ScoreRequest("Mary", "")])
    for call in (
        lambda: merged.generate([GenerationRequest("Mary", "z")]),
        lambda: list(merged.stream(GenerationRequest("Mary", "z"))),
        lambda: merged.loglikelihood([ScoreRequest("Mary", " x", "z")]),
    ):
        with pytest.raises(EngineError, match="not loaded: 'z'. Allowed: x, y"):
            call()


def test_an_adapter_of_another_base_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    same_shape = save_base(tmp_path / "same_shape", seed=9)
    with pytest.raises(AdapterError, match="made for another base: this one has weights_sha256"):
        TorchEngine(str(same_shape), {"x": folders["x"]})
    wider = save_base(tmp_path / "wider", hidden_size=64)
    foreign = save_adapter(tmp_path / "foreign", folders["base"], 5, card=False)
    with pytest.raises(AdapterError, match=r"made for another base: model.layers.0.*\[.*64.*\] here"):
        TorchEngine(str(wider), {"x": foreign})
    assert TorchEngine(str(folders["base"]), {"x": foreign}).adapters() == ["x"]


def test_damaged_adapters_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "z", folders["base"], 7)
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(AdapterError, match="has .* bytes, but promises"):
        TorchEngine(str(folders["base"]), {"z": adapter})
    weights.unlink()
    with pytest.raises(AdapterError, match="no adapter_model.safetensors"):
        TorchEngine(str(folders["base"]), {"z": adapter})
    with pytest.raises(AdapterError, match="no adapter in this folder"):
        TorchEngine(str(folders["base"]), {"z": tmp_path})


def test_tensors_that_find_no_place_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = save_adapter(tmp_path / "z", folders["base"], 7)
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    dropped = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != dropped}, weights)
    for merge in (True, False):
        with pytest.raises(AdapterError, match="1 tensors are missing from its file"):
            TorchEngine(str(folders["base"]), {"z": adapter}, merge=merge)


def test_a_merge_into_a_shared_weight_is_refused(folders: dict[str, Path]) -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    tokenizer = tiny_tokenizer()
    foreign = folders["base"].parent / "shared"
    save_adapter(foreign, folders["base"], 6, card=False)
    with pytest.raises(AdapterError, match="cannot be merged: it changes a weight that several layers share"):
        TorchEngine(model, {"s": foreign}, tokenizer=tokenizer, merge=True)
    assert TorchEngine(model, {"s": foreign}, tokenizer=tokenizer)._peft is not None


def test_a_model_object_needs_its_own_tokenizer() -> None:
    with pytest.raises(EngineError, match="needs its tokenizer"):
        TorchEngine(tiny_llama())
    with pytest.raises(TokenizerError, match="does not match the model"):
        TorchEngine(tiny_llama(vocab_size=40), tokenizer=tiny_tokenizer())
    engine = TorchEngine(tiny_llama(), tokenizer=tiny_tokenizer())
    assert engine.generate([GenerationRequest("Mary")])[0].new_tokens > 0


def test_settings_are_checked(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="unknown dtype: 'int3'"):
        TorchEngine(str(folders["base"]), dtype="int3")
    with pytest.raises(CheckpointError, match="device cannot be used"):
        TorchEngine(str(folders["base"]), device="toaster")
