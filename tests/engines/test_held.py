"""Outputs held to choices, part by part: the likeliest that is allowed, and what is forced costs no forward step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from cairn.config import parse_config
from cairn.engines import decoding
from cairn.engines.base import Constraint, GenerationRequest, Sampling
from cairn.engines.fake_engine import FakeEngine
from cairn.engines.held import Held, choice_encoder, hold
from cairn.engines.torch_engine import TorchEngine
from cairn.errors import ConfigError, InputError
from cairn.models.tokenization import byte_tokenizer, completion_ids
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec
from tests.engines.tiny_models import save_base, tiny_llama, tiny_tokenizer
from tests.models.byte_models import RULES, byte_model

LABELS = ("no", "none", "garden", "milk")
PROMPTS = ["Mary went", "Where is the milk? John took", "Sandra moved to the garden. none"]


def labels(words: int) -> Constraint:
    parts = [tuple(f"{number} {label}" for label in LABELS) for number in range(1, words + 1)]
    return Constraint(parts[0], tuple(parts[1:]))


def test_every_way_through_the_parts_is_followed() -> None:
    held = Held([[[1, 2], [1, 2, 3], [4]], [[3, 5], [6, 5]], [[7, 0]]])
    assert held.allowed([]) == {1, 4} and held.forced([]) == []
    assert held.allowed([1]) == {2} and held.forced([1]) == [2]
    assert held.allowed([1, 2]) == {3, 6}, "the first choice is done, or the second one goes on"
    assert held.allowed([1, 2, 3]) == {5, 3, 6}, "which of the two it was is still open"
    assert held.forced([1, 2, 3, 5]) == [7, 0] and held.allowed([1, 2, 3, 5, 7, 0]) == set()
    assert Held([[[4]], [[6, 5, 0]]]).forced([]) == [4, 6, 5, 0]


def test_the_guess_goes_on_with_the_choice_of_the_last_part() -> None:
    no, north = [9, 1], [9, 1, 2]  # one begins the other: both are followed until it is known
    parts = [[no, north], [no, north], [no, north], [no], [[*no, 0]]]
    assert Held(parts).guess([], 3) == []
    assert Held(parts).guess([*no, 9], 2) == [1, *no]
    assert Held(parts).guess([*north], 1) == north
    assert Held(parts).guess([*no, *north], 3) == north, "a part without this choice ends the guess"
    assert Held([[no], [no], [[*no, 0]]]).guess([*no, *no], 9) == no, "without the end mark"
    assert Held(parts).guess([*no, 9, 1, 2], 1) == north


def likes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, by: float) -> None:
    """Makes the tokens of a text likelier everywhere, so that a label is often followed by the same one."""
    ids = completion_ids(tokenizer, text)[:-1]
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features).index_fill_(0, torch.tensor(ids), by))


@pytest.mark.parametrize("by", [0.0, 3.0, 50.0])
def test_a_draft_changes_the_steps_and_not_the_text(by: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses that are mostly wrong, now and then right, and always right."""
    torch.manual_seed(5)
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    likes(model, tokenizer, " milk", by)
    engine = TorchEngine(model.eval(), tokenizer=tokenizer, dtype="float32", device="cpu")
    asked = [GenerationRequest(prompt, None, Sampling(max_new_tokens=80), labels(12)) for prompt in PROMPTS]
    counted = counts_of(engine, monkeypatch)
    drafted = [engine.generate([one])[0] for one in asked]
    streamed = ["".join(engine.stream(one)) for one in asked]
    with_drafts = counted.pop()
    monkeypatch.setattr(decoding, "DRAFT_PARTS", 0)
    plain = [engine.generate([one])[0] for one in asked]
    assert ["".join(engine.stream(one)) for one in asked] == streamed == [one.text for one in plain]
    assert [(one.text, one.new_tokens, one.finish) for one in drafted] == [
        (one.text, one.new_tokens, one.finish) for one in plain
    ]
    assert with_drafts < (0.5 if by == 50 else 1) * counted.pop()


def test_choices_that_do_not_fit_are_refused() -> None:
    encode = choice_encoder(tiny_tokenizer())
    assert hold(encode, labels(2), 40).allowed([])
    with pytest.raises(InputError, match="choices do not fit the output") as caught:
        hold(encode, labels(2), 5)
    needed = int(str(caught.value).split("max_new_tokens to ")[1].split()[0])
    hold(encode, labels(2), needed)
    with pytest.raises(InputError, match="do not fit"):
        hold(encode, labels(2), needed - 1)
    with pytest.raises(InputError, match="do not fit"):
        hold(encode, Constraint(("a",), ((),)), 40)


def neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=360, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=96, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    ))  # fmt: skip


MODELS: dict[str, Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]] = {
    "llama": lambda: (tiny_llama(), tiny_tokenizer()),
    "neox": lambda: (neox(), tiny_tokenizer()),
    **{f"bytes-{rule}": partial(lambda rule: (byte_model(rule), byte_tokenizer()), rule) for rule in RULES},
}


@pytest.mark.parametrize("kind", list(MODELS))
def test_forced_tokens_change_the_time_and_not_the_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the slow way, one token a step."""
    torch.manual_seed(3)
    model, tokenizer = MODELS[kind]()
    engine = TorchEngine(model.eval(), tokenizer=tokenizer, dtype="float32", device="cpu")
    asked = [
        *(
            GenerationRequest(prompt, None, Sampling(max_new_tokens=60), labels(words))
            for words, prompt in enumerate(PROMPTS, 1)
        ),
        GenerationRequest(PROMPTS[0], None, Sampling(max_new_tokens=3)),
        GenerationRequest(PROMPTS[1], None, Sampling(max_new_tokens=40), Constraint(("garden milk",))),
    ]  # fmt: skip
    counted = counts_of(engine, monkeypatch)
    together = engine.generate(asked)
    alone = [engine.generate([one])[0] for one in asked]
    fast = counted.pop()
    monkeypatch.setattr(decoding, "DRAFT_PARTS", 0)
    monkeypatch.setattr(decoding, "write_forced", lambda *_: 0)
    slow = [engine.generate([one])[0] for one in asked]
    assert [one.text for one in together] == [one.text for one in alone] == [one.text for one in slow]
    assert [one.new_tokens for one in together] == [one.new_tokens for one in slow]
    for words, made in enumerate(together[:3], 1):
        assert made.text.split()[::2] == [str(number) for number in range(1, words + 1)]
        assert set(made.text.split()[1::2]) <= set(LABELS) and made.finish == "stop"
    assert together[4].text == " garden milk"
    assert fast < counted.pop()


def counts_of(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list whose last number is the forward steps since it was popped, for requests one at a time."""
    counted: list[int] = []
    run = engine._forward

    def forward(adapter: str | None, **inputs: Any) -> Any:
        if not counted:
            counted.append(0)
        counted[-1] += inputs["input_ids"].shape[0] == 1
        return run(adapter, **inputs)

    monkeypatch.setattr(engine, "_forward", forward)
    return counted


def test_a_single_choice_is_not_read_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = TorchEngine(str(save_base(tmp_path / "base")), dtype="float32", device="cpu")
    counted = counts_of(engine, monkeypatch)
    made = engine.generate([GenerationRequest("yes", None, Sampling(max_new_tokens=40), Constraint(("garden milk",)))])
    assert made[0].text == " garden milk" and counted == []
    assert made[0].new_tokens == len(completion_ids(engine.tokenizer, " garden milk"))


TAGS = {"name": "tags", "reads": [], "prompt": "{command} tags:", "constrain": True, "sampling": {"max_new_tokens": 40},
        "contract": {"kind": "labels", "field": "command", "values": list(LABELS)}}  # fmt: skip


def tagging(**changes: Any) -> StackSpec:
    return parse_config(StackSpec, {"name": "s", "inputs": ["command"], "stages": [{**TAGS, **changes}]}, "s")


def test_a_stage_of_labels_asks_for_one_part_a_word() -> None:
    engine = FakeEngine(lambda request: " 1 milk 2 no", adapters=["tags"])
    engine.capabilities = replace(engine.capabilities, constraints=True)
    traces = Runner(tagging(), engine).run([{"command": "take milk"}, {"command": "take"}])
    asked: Sequence[GenerationRequest] = engine.requests
    assert asked[0].constraint == labels(2) and asked[1].constraint == labels(1)
    assert traces[0].violations == [] and "each of 1 words" in traces[1].violations[0]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"contract": {**TAGS["contract"], "field": "comand"}}, "labels the words of 'comand'"),
        ({"contract": {**TAGS["contract"], "values": ["a b"]}}, "one word"),
        ({"contract": {**TAGS["contract"], "values": ["a", "a"]}}, "distinct"),
        ({"kind": "repeat", "over": "command", "until": "stop"}, "until ends a loop"),
    ],
)
def test_faults_of_labels(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        tagging(**changes)
