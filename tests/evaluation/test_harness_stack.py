"""A stack on the harness's tasks: inputs from contexts, hand-offs once, choices by the last stage, text by all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cairn.engines.base import ScoreRequest
from cairn.engines.fake_engine import FakeEngine
from cairn.engines.torch_engine import TorchEngine
from cairn.errors import ConfigError, EngineError, InputError
from cairn.evaluation.harness import score_tasks
from cairn.evaluation.harness_data import LocalData
from cairn.evaluation.harness_stack import HarnessStack, field_templates
from cairn.evaluation.harness_tasks import load_tasks
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec
from tests.engines.tiny_models import save_adapter, save_base
from tests.evaluation.harness_files import write_files


def spec(**changes: Any) -> StackSpec:
    return StackSpec.model_validate({
        "name": "two", "inputs": ["question"],
        "stages": [
            {"name": "recall", "prompt": "{question}\nRecall:", "sampling": {"max_new_tokens": 4}},
            {"name": "answer", "reads": ["recall"], "prompt": "{recall}\n{question}\nAnswer:",
             "sampling": {"max_new_tokens": 4}},
        ],
    } | changes)  # fmt: skip


def fake(**more: Any) -> FakeEngine:
    script = {"Recall:": " it is cold", "Answer:": " yes.\nno"}
    return FakeEngine(script, adapters=["recall", "answer"], **{"scores": {"yes": -1.0, "no": -2.0}, **more})


def requests(*arguments: tuple[Any, ...], doc: dict[str, Any] | None = None) -> list[Any]:
    return [SimpleNamespace(args=one, doc=doc or {}) for one in arguments]


def test_choices_are_scored_by_the_last_stage_given_hand_offs_that_are_made_once() -> None:
    engine = fake()
    lm = HarnessStack(spec(), engine)
    both = requests(("Is it?", " yes"), ("Is it?", " no"))
    assert lm.loglikelihood(both) == [(-1.0, False), (-2.0, False)]
    assert [one.adapter for one in engine.requests] == ["recall"]  # one hand-off, and no answer was written
    prompt = "it is cold\nIs it?\nAnswer:"
    assert engine.score_requests == [ScoreRequest(prompt, " yes", "answer"), ScoreRequest(prompt, " no", "answer")]
    lm.loglikelihood(both)
    assert len(engine.requests) == 1  # kept for the next task as well
    assert lm.details("Is it?", {})["handoffs"] == {"recall": "it is cold"}


def test_generation_runs_the_chain_and_cuts_at_the_tasks_stops() -> None:
    engine = fake()
    lm = HarnessStack(spec(), engine)
    asked = requests(("Is it?", {"until": ["\n"], "max_gen_toks": 99}), ("Is it?", {"until": "."}))
    assert lm.generate_until(asked) == [" yes.", " yes"]
    assert [one.adapter for one in engine.requests] == ["recall", "answer"]
    assert engine.requests[-1].sampling.max_new_tokens == 4  # the stage's own


def test_the_context_or_the_documents_fields_become_inputs() -> None:
    doc = {"question": "Is it?", "choices": {"text": ["yes", "no"]}, "context": "shadowed"}
    stack = spec(inputs=["question", "options"])
    templates = {"options": "{{choices.text | join(' or ')}}", "question": "{{question}} {{doc.context}}"}
    lm = HarnessStack(stack, fake(), templates)
    assert lm.inputs("Q: Is it?\nA:", doc) == {"question": "Is it? shadowed", "options": "yes or no"}
    assert HarnessStack(spec(), fake()).inputs("Q: Is it? ", doc) == {"question": "Q: Is it?"}
    assert HarnessStack(spec(), fake(), {"question": "{{context}}!"}).inputs("Hm", doc) == {"question": "Hm!"}


def test_templates_that_do_not_fit_are_errors() -> None:
    two = spec(inputs=["question", "options"])
    with pytest.raises(ConfigError) as error:
        field_templates(two, {"qestion": "x", "options": "{{ open"})
    message = str(error.value)
    assert "harness.qestion: the stack has no such input (did you mean question?), allowed: question, opt" in message
    assert "harness.question: no template, and the stack has 2 inputs" in message and "harness.options: " in message
    lm = HarnessStack(spec(), fake(), {"question": "{{nothing}}"})
    with pytest.raises(InputError, match="does not fit this task .*'nothing' is undefined.*: context, doc, known"):
        lm.loglikelihood(requests(("x", " yes"), doc={"known": 1}))


def test_tasks_without_a_context_are_for_the_base(tmp_path: Path) -> None:
    loaded = load_tasks(["blimp_passive_1"], data=LocalData(write_files(tmp_path, "blimp")))
    with pytest.raises(InputError, match="gives the stack no text to read.*score the base instead"):
        score_tasks(HarnessStack(spec(), fake()), loaded)
    with pytest.raises(EngineError, match="a stack does not score whole texts"):
        HarnessStack(spec(), fake()).loglikelihood_rolling(requests(("x",)))


@pytest.mark.parametrize("change", [
    {"rule": "cairn.prompts:parse_output", "prompt": None, "sampling": {}},
    {"kind": "map", "over": "recall", "prompt": "{item}\n{question}\nAnswer:"},
])  # fmt: skip
def test_an_answer_stage_without_a_likelihood_is_refused_for_choices(change: dict[str, Any]) -> None:
    stack = spec()
    stages = [stack.stages[0], stack.stages[1].model_copy(update=change)]
    lm = HarnessStack(stack.model_copy(update={"stages": stages}), fake())
    with pytest.raises(EngineError, match="the answer stage's log-likelihood, and this one has none: 'answer:"):
        lm.loglikelihood(requests(("Is it?", " yes")))


def test_the_answer_need_not_be_the_last_stage() -> None:
    stack = spec(output="recall")
    engine = fake()
    lm = HarnessStack(stack, engine)
    lm.loglikelihood(requests(("Is it?", " yes")))
    assert engine.requests == [] and engine.score_requests == [ScoreRequest("Is it?\nRecall:", " yes", "recall")]
    assert lm.generate_until(requests(("Is it?", {}))) == [" it is cold"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    root = tmp_path_factory.mktemp("stack")
    base = save_base(root / "base")
    return TorchEngine(
        base, {name: save_adapter(root / name, base, seed) for seed, name in enumerate(("recall", "answer"))},
        dtype="float32",
    )  # fmt: skip


def test_figures_are_the_engines_own_given_the_runners_hand_offs(engine: TorchEngine) -> None:
    stack = spec()
    questions = ["Where is the milk?", "Where is the apple?"]
    asked = [(question, choice) for question in questions for choice in (" kitchen", " the garden", " no")]
    found = HarnessStack(stack, engine).loglikelihood(requests(*asked))
    traces = {question: trace for question, trace in zip(
        questions, Runner(stack, engine).run([{"question": question} for question in questions]), strict=True
    )}  # fmt: skip
    for (question, choice), (logprob, greedy) in zip(asked, found, strict=True):
        prompt = traces[question].stages[1].calls[0].prompt
        (score,) = engine.loglikelihood([ScoreRequest(prompt, choice, "answer")])
        assert (logprob, greedy) == (pytest.approx(score.logprob, rel=1e-4), score.greedy)
    written = HarnessStack(stack, engine).generate_until(requests(*((question, {}) for question in questions)))
    assert written == [traces[question].stages[1].calls[0].output for question in questions]


def test_an_input_that_is_too_long_is_cut_on_the_left_and_counted(engine: TorchEngine) -> None:
    lm = HarnessStack(spec(), engine)
    long, short = "Where is the milk? " * 40, "Where is the milk?"
    asked = requests((long, " yes"), (long, " no"), (short, " yes"))
    assert len(lm.loglikelihood(asked)) == 3
    assert lm.counts["contexts_cut"] == 1 and 400 < lm.counts["characters_cut"] < len(long)
    assert lm.details(long, {})["characters_cut"] == lm.counts["characters_cut"]
    assert lm.details(short, {})["characters_cut"] == 0
    stages = [{"name": "recall", "prompt": "Where is the milk? " * 40 + "{question}"}]
    with pytest.raises(InputError, match="longer than the model's context"):  # the template alone does not fit
        HarnessStack(spec(stages=stages), engine).generate_until(requests((short, {})))


def test_a_stack_gets_an_entry_like_a_model(tmp_path: Path) -> None:
    loaded = load_tasks(["openbookqa"], data=LocalData(write_files(tmp_path, "openbook_qa")))
    engine = fake(scores={"white": -1.0, "green": -3.0, "loud": -3.0, "a river": -9.0})
    found = score_tasks(HarnessStack(spec(), engine), loaded, items=tmp_path / "items")
    assert found["tasks"]["openbookqa"]["metrics"]["acc,none"]["value"] == 1.0
    assert '"handoffs": {"recall": "it is cold"}' in (tmp_path / "items" / "openbookqa.jsonl").read_text()
