"""What the demo ships and writes: the stack loses nothing of the gold, and other verbs read the files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cairn.data.examples import adapter_pairs, ambiguous_prompts, chain_pairs, direct_pairs, gold_fields, read_examples
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import ConfigError, DataError
from cairn.evaluation.tasks.babi import read_babi
from cairn.evaluation.tasks.babi_stages import STAGE_TASKS, stage_example
from cairn.stacks.runner import Runner
from cairn.stacks.spec import load_stack
from cairn.verbs.demo_data import demo_folder, demo_questions, resolve_demo, write_inputs
from cairn.verbs.spent_seconds import SpentSeconds


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    write_inputs(resolve_demo(["demo.train_questions=60", "demo.test_questions=60"]), out)
    return out


def test_gold_hand_offs_through_the_runner_answer_every_question(written: Path) -> None:
    """An oracle that knows only the training pairs' prompts: a prompt that serving renders otherwise has no reply."""
    spec = load_stack(demo_folder() / "stack.yaml")
    gold = written / "gold.jsonl"
    settings = resolve_demo(["demo.train_questions=1", "demo.test_questions=120"]).demo
    rows = []
    for task in STAGE_TASKS:
        questions = read_babi(demo_folder() / "babi" / f"{task}_test.txt.xz")[: settings.test_questions]
        rows += [stage_example(question) for question in questions]
    gold.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = read_examples(gold, spec)

    replies: dict[tuple[str | None, str], str] = {}
    for adapter in spec.adapter_names():
        pairs = adapter_pairs(spec, adapter, examples)
        assert ambiguous_prompts(pairs) == 0, adapter  # no stage is asked what its prompt cannot tell
        replies |= {(adapter, prompt): completion for prompt, completion in pairs}
    engine = FakeEngine(lambda request: replies[request.adapter, request.prompt], adapters=spec.adapter_names())

    questions = demo_questions(settings)
    traces = Runner(spec, engine).run([q.inputs for q in questions], ids=[q.id for q in questions])
    assert len(traces) == 5 * 120
    assert [trace.answer for trace in traces] == [question.answer for question in questions]
    assert not any(trace.violations for trace in traces)
    for trace, example in zip(traces, examples, strict=True):
        fields = gold_fields(spec, example)
        assert {record.name: record.value for record in trace.stages} == {s.name: fields[s.name] for s in spec.stages}


def test_no_comparator_is_asked_what_its_prompt_cannot_tell(written: Path) -> None:
    spec = load_stack(written)
    examples = read_examples(written / "train.jsonl", spec)
    assert len(examples) == 60 * len(STAGE_TASKS)
    assert ambiguous_prompts(direct_pairs(spec, examples)) == 0
    chain = chain_pairs(spec, examples)
    assert ambiguous_prompts(chain) == 0
    assert all(pair.completion.endswith(f"answer: {e.answer}") for pair, e in zip(chain, examples, strict=True))


def test_written_files_are_what_other_verbs_read(written: Path) -> None:
    spec = load_stack(written)
    assert spec.model_dump() == load_stack(demo_folder() / "stack.yaml").model_dump()
    test = [json.loads(line) for line in (written / "test.jsonl").read_text().splitlines()]
    assert [row["id"] for row in test] == [q.id for q in demo_questions(resolve_demo(["demo.test_questions=60"]).demo)]
    assert {row["task"] for row in test} == set(STAGE_TASKS)


def test_the_limit_of_sentences_counts_the_whole_chain(tmp_path: Path) -> None:
    overrides = ["demo.train_questions=40", "demo.test_questions=1", "demo.train_sentences=20"]
    write_inputs(resolve_demo(overrides), tmp_path)
    stages = [json.loads(line)["stages"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    sizes = [len(one["mention"]) + one["mention"].count("yes") + one["follow"].count("yes") for one in stages]
    assert 14 < max(sizes) <= 20


def test_an_interrupted_preparation_is_finished_and_nothing_is_written_twice(written: Path) -> None:
    settings = resolve_demo(["demo.train_questions=60", "demo.test_questions=60"])
    before = {path.name: path.read_bytes() for path in written.glob("*.jsonl")}
    stamp = (written / "train.jsonl").stat().st_mtime_ns
    (written / "test.jsonl").unlink()
    write_inputs(settings, written)
    assert (written / "test.jsonl").read_bytes() == before["test.jsonl"]
    assert (written / "train.jsonl").stat().st_mtime_ns == stamp


def test_overrides_reach_the_stack_and_the_demo() -> None:
    settings = resolve_demo(["training.tokens_total=1234", "demo.shots=2", "base=elsewhere"], full=True)
    assert settings.stack.training["tokens_total"] == 1234
    assert settings.stack.base == "elsewhere"
    assert (settings.demo.shots, settings.demo.test_questions) == (2, 1000)
    assert resolve_demo(["demo.test_questions=3"], full=True).demo.test_questions == 3  # what is said wins over flags
    assert resolve_demo(quick=True).demo.test_questions < resolve_demo().demo.test_questions


def test_a_wrong_override_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"test_question: unknown key \(did you mean test_questions\?\)"):
        resolve_demo(["demo.test_question=3"])
    with pytest.raises(ConfigError, match="test_questions: 2000"):
        resolve_demo(["demo.test_questions=2000"])


def test_too_few_short_stories_is_an_error(tmp_path: Path) -> None:
    settings = resolve_demo(["demo.train_sentences=6", "demo.train_questions=9000"])
    with pytest.raises(DataError, match="qa1_train.txt.xz has too few questions with at most 6 sentences"):
        write_inputs(settings, tmp_path)


def test_seconds_are_kept_over_sessions_even_if_one_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    with SpentSeconds(path, every=0.01) as first:
        time.sleep(0.1)
        noted = json.loads(path.read_text())["seconds"]  # a kill would leave at least this
    assert 0.03 <= noted <= first.total
    with SpentSeconds(path, every=60) as second:
        assert second.total >= json.loads(path.read_text())["seconds"] >= 0.1


