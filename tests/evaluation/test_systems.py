"""Running single models through the engine seam: the prompts they see, how answers are read, what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from cairn.engines.base import Capabilities, Generation, GenerationRequest, Sampling
from cairn.errors import InputError
from cairn.evaluation.cost import FlopsCounter
from cairn.evaluation.systems import (
    Question,
    chain_answer,
    first_words,
    fit_few_shot,
    run_base,
    run_single,
    run_stack,
    token_counter,
    trace_stages,
)

TEMPLATE = "{story}\nQ: {question}\nA:"
CONFIG = SimpleNamespace(
    model_type="cairn", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, intermediate_size=64, vocab_size=320, tie_word_embeddings=True,
)  # fmt: skip


def question(number: int, answer: str = "hall", task: str = "qa1", words: int = 3) -> Question:
    story = " ".join(f"w{number}" for _ in range(words))
    return Question(f"{task}-{number}", f"s{number // 2}", task, {"story": story, "question": "Where?"}, answer)


class Scripted:
    name = "scripted"
    capabilities = Capabilities(False, True, True, False, False, 400)

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.requests: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.requests += requests
        return [Generation(self.texts.pop(0), len(request.prompt), 2, "stop", 0.5) for request in requests]


def test_run_single_scores_and_accounts_each_question() -> None:
    engine = Scripted([" Hall.", " kitchen"])
    flops = FlopsCounter(CONFIG, {"single_direct": 100})
    questions = [question(0), question(1)]
    seen: list[tuple[int, int]] = []
    outcomes = run_single(
        engine, questions, lambda q: f"{q.inputs['story']} ?", flops, adapter="single_direct",
        sampling=Sampling(max_new_tokens=4), progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert [(o.id, o.group, o.answer, o.correct) for o in outcomes] == [
        ("qa1-0", "s0", "Hall.", True),
        ("qa1-1", "s0", "kitchen", False),
    ]
    assert outcomes[0].flops == flops.call("single_direct", len("w0 w0 w0 ?"), 2) > 0
    assert (outcomes[0].calls, outcomes[0].new_tokens, outcomes[0].seconds) == (1, 2, 0.5)
    assert {r.adapter for r in engine.requests} == {"single_direct"} and engine.requests[0].sampling.temperature == 0
    assert seen == [(2, 2)]


def test_chain_answer_is_the_last_named_value() -> None:
    read = chain_answer(["facts", "answer"])
    assert read(" facts: John took it.\nHe left.\nanswer: hall") == "hall"
    assert read(" facts: John took it.") == ""  # cut off before its answer: wrong, not guessed
    assert first_words(" hall. Mary went\nhome") == "hall"
    assert first_words("\n") == ""


def test_few_shot_takes_varied_short_examples_of_the_task_and_fits_them() -> None:
    train = [question(i, answer=("hall", "office")[i % 2], words=i + 1) for i in range(1, 9)]
    train += [question(99, task="qa2")]
    opened = question(50)
    prompt, used = fit_few_shot(opened, train, TEMPLATE, 2, 10_000, len)
    assert used == 2 and prompt.endswith("w50 w50 w50\nQ: Where?\nA:") and prompt.count("\n\n") == 2
    assert "A: hall\n\n" in prompt and "A: office\n\n" in prompt and "w99" not in prompt
    assert not any(f"w{i} " in prompt for i in range(5, 9))  # the longer half
    assert (prompt, used) == fit_few_shot(opened, list(reversed(train)), TEMPLATE, 2, 10_000, len)
    fitted, fewer = fit_few_shot(opened, train, TEMPLATE, 2, len(prompt) - 1, len)
    assert fewer == 1 and len(fitted) < len(prompt)
    alone, none = fit_few_shot(opened, train, TEMPLATE, 2, 3, len)
    assert none == 0 and alone == "w50 w50 w50\nQ: Where?\nA:"
    with pytest.raises(InputError, match="no training question for the task: 'qa3'"):
        fit_few_shot(question(1, task="qa3"), train, TEMPLATE, 2, 100, len)


def test_run_base_reads_the_first_words_and_says_how_many_examples_it_showed() -> None:
    engine = Scripted([" hall. Then he left", " garden"])
    train = [question(i, words=2) for i in range(10, 14)]
    outcomes, shown = run_base(engine, [question(0), question(1)], train, TEMPLATE, FlopsCounter(CONFIG), shots=3)
    assert [o.correct for o in outcomes] == [True, False] and shown == {"qa1": 3.0}
    assert all(r.adapter is None and "\n" in r.sampling.stop for r in engine.requests)
    assert all(len(r.prompt) + r.sampling.max_new_tokens <= 400 for r in engine.requests)


def test_tokens_are_counted_by_the_engine_if_it_can() -> None:
    assert token_counter(Scripted([]))("añb") == 5  # bytes and a beginning mark: never too few
    assert token_counter(SimpleNamespace(count_tokens=lambda text: 7))("añb") == 7


STACK = {
    "name": "two",
    "inputs": ["story", "question"],
    "stages": [
        {
            "name": "mention", "kind": "map", "over": "story", "keep": "yes", "prompt": "{item}\n{question}\nA:",
            "contract": {"kind": "choices", "values": ["yes", "no"]},
        },
        {"name": "answer", "reads": ["mention"], "prompt": "{mention}\n{question}\nA:"},
    ],
}  # fmt: skip


def test_run_stack_counts_every_call_and_keeps_the_trace() -> None:
    from cairn.engines.fake_engine import FakeEngine
    from cairn.stacks.runner import Runner
    from cairn.stacks.spec import StackSpec

    spec = StackSpec.model_validate(STACK)
    script = {"sat": " no", "went": " yes", "ran": " perhaps", "Mary went": " hall"}

    def reply(request: GenerationRequest) -> str:
        first = request.prompt.split("\n")[0]
        return " Hall." if request.adapter == "answer" else next(text for key, text in script.items() if key in first)

    engine = FakeEngine(reply, adapters=["mention", "answer"])
    inputs = {"story": "Mary went home.\nJohn sat.\nSue ran.", "question": "Where is Mary?"}
    flops = FlopsCounter(CONFIG, {"mention": 10, "answer": 20})
    outcomes, traces = run_stack(Runner(spec, engine), [Question("q", "s", "qa1", inputs, "hall")], flops)
    (outcome,), (trace,) = outcomes, traces
    assert outcome.correct and outcome.answer == "Hall." and outcome.id == trace.id == "q"
    assert outcome.calls == 5  # three sentences, one of them asked twice, and the answer
    prompts = [len(request.prompt.split()) for request in engine.requests]
    assert len(prompts) == 5 and outcome.prompt_tokens == trace.totals.prompt_tokens >= sum(prompts)
    calls = [(record.adapter, call) for record in trace.stages for call in record.calls]
    wanted = 0
    for adapter, call in calls:
        tries = 1 + len(call.rejected)
        wanted += tries * flops.call(adapter, call.prompt_tokens // tries, call.new_tokens // tries)
    assert outcome.flops == wanted and len(calls) == 4

    mention, answer = trace_stages(spec, trace)
    assert (mention["name"], mention["over"], mention["kept"], mention["value"]) == (
        "mention", "story", [0], "Mary went home.",
    )  # fmt: skip
    assert [call["item"] for call in mention["calls"]] == inputs["story"].split("\n")
    assert "promised one of yes, no, but got 'perhaps'" in mention["calls"][2]["violations"][0]
    assert (answer["kept"], answer["prompt"]) == (None, "Mary went home.\nWhere is Mary?\nA:")
