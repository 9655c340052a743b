"""`cairn run`: hand-offs on the screen, files that can be gone on with, and clear refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cairn.cli import main
from cairn.engines.base import GenerationRequest
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import InputError
from cairn.stacks.trace import from_json
from cairn.verbs import run as run_module
from tests.engines.tiny_models import save_adapter, save_base
from tests.stacks.stack_yaml import INPUTS, QUESTION, REPLIES, STACK, STORY, write_stack

ADAPTERS = ("mention", "link", "answer")


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A stack folder whose adapters are there by name only: the engine is scripted."""
    folder = tmp_path / "stack"
    write_stack(folder)
    for name in ADAPTERS:
        (folder / "stages" / name).mkdir(parents=True)
        (folder / "stages" / name / "adapter_config.json").write_text("{}")
        (folder / "stages" / name / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine(REPLIES, adapters=ADAPTERS)
    monkeypatch.setattr(run_module, "open_engine", lambda spec, **settings: fake)
    return fake


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(["run", *map(str, arguments)])
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Traceback" not in text
    return code, text


def many(path: Path, count: int, **changes: Any) -> Path:
    rows = [{"id": f"q{number}", "inputs": {**INPUTS, **changes.get(f"q{number}", {})}} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_question_shows_each_hand_off(stack: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(stack), "--field", f"story={STORY}", QUESTION]) == 0
    shown = capsys.readouterr().out
    for line in ("question  Where is the milk?", "1 mention  (1 of 3 items kept)", "  > John", "answer: office"):
        assert line in shown
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith("  * ")] == ["yes", "yes", "yes"]
    assert shown.index("1 mention") < shown.index("2 link") < shown.index("3 follow") < shown.index("4 answer")
    assert len(engine.requests) == 8


def test_hand_offs_are_printed_as_they_are_made(stack: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def reply(request: GenerationRequest) -> str:
        if "Answer:" in request.prompt:
            assert "3 follow" in capsys.readouterr().out  # on the screen before the answer's stage runs
        return next(text for key, text in REPLIES.items() if key in request.prompt)

    fake = FakeEngine(reply, adapters=ADAPTERS)
    monkeypatch.setattr(run_module, "open_engine", lambda spec, **settings: fake)
    assert main(["run", str(stack), STORY, "--field", f"question={QUESTION}"]) == 0
    assert "answer: office" in capsys.readouterr().out


def test_json_and_a_field_from_a_file(stack: Path, engine: FakeEngine, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    assert main(["run", str(stack / "stack.yaml"), QUESTION, "--field", f"story=@{tmp_path}/story.txt", "--json"]) == 0
    trace = from_json(capsys.readouterr().out)
    assert (trace.answer, trace.inputs) == ("office", INPUTS)


def test_many_keep_their_order(stack: Path, engine: FakeEngine, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.jsonl"
    questions = many(tmp_path / "in.jsonl", 5)
    assert main(["run", str(stack), "--input", str(questions), "--output", str(out), "--wave", "2"]) == 0
    traces = [from_json(line) for line in out.read_text().splitlines()]
    assert [(trace.id, trace.answer) for trace in traces] == [(f"q{number}", "office") for number in range(5)]


def test_flat_lines_and_compact_answers(stack: Path, engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(INPUTS) + "\n")
    out = tmp_path / "out.jsonl"
    assert main(["run", str(stack), "--input", str(tmp_path / "in.jsonl"), "--output", str(out), "--compact"]) == 0
    assert json.loads(out.read_text()) == {"id": "1", "answer": "office", "violations": []}


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("cut", [1, 7, 40])
def test_interrupted_and_gone_on_with_equals_uninterrupted(
    stack: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any, compact: bool, cut: int
) -> None:
    questions = many(tmp_path / "in.jsonl", 4)
    fakes: list[FakeEngine] = []

    def start(fail: bool) -> None:
        def reply(request: GenerationRequest) -> str:
            if fail and len(fakes[-1].requests) > 18:  # in the third question
                raise KeyboardInterrupt
            return next(text for key, text in REPLIES.items() if key in request.prompt)

        fakes.append(FakeEngine(reply, adapters=ADAPTERS))

    monkeypatch.setattr(run_module, "open_engine", lambda spec, **settings: fakes[-1])

    def call(out: Path) -> int:
        flags = ["--compact"] if compact else []
        return main(["run", str(stack), "--input", str(questions), "--output", str(out), "--wave", "1", *flags])

    start(fail=False)
    assert call(tmp_path / "whole.jsonl") == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    out = tmp_path / "out.jsonl"
    start(fail=True)
    assert call(out) == 130
    assert "interrupted; run the same command again" in capsys.readouterr().err
    half = out.read_bytes()
    assert half.count(b"\n") == 2 and whole.startswith(half)
    out.write_bytes(whole[: len(half) + cut])  # killed while the third line was being written
    start(fail=False)
    assert call(out) == 0
    assert out.read_bytes() == whole
    assert len(fakes[-1].requests) == 2 * 8  # only the two that were left
    start(fail=False)
    assert call(out) == 0
    assert fakes[-1].requests == []
    assert "(4 were there)" in capsys.readouterr().out


LOOP_STACK = """
name: loop
inputs: [first, bill]
stages:
  - {name: count, kind: repeat, start: "{first}", until: done, prompt: "from {state}:"}
  - {name: sum, rule: calculate, reads: [count], arguments: {expression: "{count} + {bill}"}}
"""


@pytest.mark.parametrize("wave", [1, 2, 8])
def test_loops_killed_and_gone_on_with_give_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, wave: int
) -> None:
    folder = tmp_path / "stack"
    write_stack(folder, LOOP_STACK)
    (folder / "stages" / "count").mkdir(parents=True)
    (folder / "stages" / "count" / "adapter_config.json").write_text("{}")
    (folder / "stages" / "count" / "adapter_model.safetensors").write_bytes(b"weights")
    rows = [{"id": f"q{n}", "first": str(n % 4), "bill": "three" if n == 2 else str(n)} for n in range(6)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    left = [0]

    def reply(request: GenerationRequest) -> str:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        number = int(request.prompt.strip(":").split()[1])
        return f" {number - 1}" if number else " done"

    monkeypatch.setattr(run_module, "open_engine", lambda spec, **settings: FakeEngine(reply, adapters=["count"]))

    def call(out: str) -> int:
        arguments = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / out), "--wave", str(wave)]
        return main(["run", str(folder), *arguments])

    def answers(out: str) -> list[Any]:
        found = [json.loads(line) for line in (tmp_path / out).read_text().splitlines()]
        for trace in found:
            trace["totals"].pop("seconds")  # of the rules' calls
            for record in trace["stages"]:
                record["calls"] = [{**call, "seconds": 0} for call in record["calls"]]
        return found

    assert call("whole.jsonl") == 0
    whole = answers("whole.jsonl")
    assert [trace["answer"] for trace in whole] == ["0", "1", "none", "3", "4", "5"]
    assert whole[2]["violations"][0].startswith("sum: rule calculate failed: not an expression: '0 + three'")
    code = 130
    for stop in (3, 5, 4, 6, 100):
        left[0] = stop
        code = call("out.jsonl") if code == 130 else code
    assert code == 0
    assert answers("out.jsonl") == whole


def test_an_output_of_something_else_is_left_alone(
    stack: Path, engine: FakeEngine, tmp_path: Path, capsys: Any
) -> None:
    questions = many(tmp_path / "in.jsonl", 2)
    out = tmp_path / "out.jsonl"
    for text, message in (
        ('{"id": "other", "answer": "x"}\n', "holds answers to other questions: 'other'"),
        ('{"id": "q0", "inputs": {"story": "x"}, "answer": "x"}\n', "holds answers to other questions"),
        ('{"id": "q0", "stack": "else", "answer": "x"}\n', "holds answers of another stack: 'else'"),
        ("my only diary\n", "not a JSON object"),
        ("my only diary", "something else than answers"),
    ):
        out.write_text(text)
        code, error = error_of(capsys, stack, "--input", questions, "--output", out)
        assert (code, message in error) == (3, True), error
        assert out.read_text() == text
    assert engine.requests == []


def test_full_disk(stack: Path, engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    code, error = error_of(capsys, stack, "--input", many(tmp_path / "in.jsonl", 2), "--output", "/dev/full")
    assert code == 5
    assert "no space left on the disk: '/dev/full'. Next: free some space" in error


def test_full_disk_keeps_what_was_written(stack: Path, engine: FakeEngine, tmp_path: Path, small_disk: Path) -> None:
    questions = many(tmp_path / "in.jsonl", 300)
    out = small_disk / "out.jsonl"
    arguments = ["run", str(stack), "--input", str(questions), "--wave", "20", "--output"]
    assert main([*arguments, str(out)]) == 5
    written = out.read_text().splitlines()
    assert from_json(written[0]).answer == "office"
    bigger = Path(shutil.copy(out, tmp_path / "out.jsonl"))
    assert main([*arguments, str(bigger)]) == 0
    assert [from_json(line).id for line in bigger.read_text().splitlines()] == [f"q{number}" for number in range(300)]
    assert bigger.read_text().splitlines()[: len(written) - 1] == written[:-1]


def test_no_permission(stack: Path, engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    questions = many(tmp_path / "in.jsonl", 1)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):  # root may write everywhere: a folder in the file's place is refused to all
        locked = tmp_path / "out.jsonl"
        locked.mkdir()
        code, error = error_of(capsys, stack, "--input", questions, "--output", locked)
        assert (code, "cannot write" in error) == (5, True)
        return
    code, error = error_of(capsys, stack, "--input", questions, "--output", locked / "out.jsonl")
    assert (code, "no permission to write" in error) == (5, True)
    assert engine.requests == []


def test_one_bad_question_of_many_is_named_and_the_others_kept(
    stack: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    class Narrow(FakeEngine):
        def generate(self, requests: Any) -> Any:
            for request in requests:
                if "too long" in request.prompt:
                    raise InputError("the input is longer than the model's context: 99 tokens", allowed="64 tokens")
            return super().generate(requests)

    monkeypatch.setattr(run_module, "open_engine", lambda spec, **settings: Narrow(REPLIES, adapters=ADAPTERS))
    questions = many(tmp_path / "in.jsonl", 4, q2={"story": "too long."})
    out = tmp_path / "out.jsonl"
    reason = "the input is longer than the model's context: 99 tokens. Allowed: 64 tokens"
    for again in range(2):  # the second call finds every line there, and still says so
        code, error = error_of(capsys, stack, "--input", questions, "--output", out)
        assert code == 2 and f"1 of 4 questions were refused, the first: question q2: {reason}" in error, again
        lines = out.read_text().splitlines()
        assert len(lines) == 4 and [from_json(lines[place]).id for place in (0, 1, 3)] == ["q0", "q1", "q3"]
        row = json.loads(lines[2])
        assert (row["id"], row["answer"], row["error"], row["inputs"]["story"]) == ("q2", None, reason, "too long.")
    short = tmp_path / "short.jsonl"
    assert error_of(capsys, stack, "--input", questions, "--output", short, "--compact")[0] == 2
    assert [json.loads(line)["answer"] for line in short.read_text().splitlines()] == ["office"] * 2 + [None, "office"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the stack needs field 'story'"),
        (["  ", "--field", "question=x"], "field 'story' is empty"),
        (["x", "--field", "qestion=x"], "unknown field (did you mean question?): 'qestion'. Allowed: story, question"),
        (["--field", "story"], "--field needs a name: 'story'"),
        (["--field", "story=x", "--field", "story=y"], "--field is given twice: 'story'"),
        (["x", "--field", "story=y", "--field", "question=z"], "TEXT is left over"),
        (["--field", "story=@nothing.txt"], "the file of a field cannot be read"),
        (["x", "--output", "out.jsonl"], "--output is for many questions"),
        (["--input", "nothing.jsonl"], "--input needs --output"),
        (["--input", "nothing.jsonl", "--output", "out.jsonl"], "the questions cannot be read"),
        (["x", "--input", "a", "--output", "b"], "--input brings its own questions"),
        (["x", "--set", "bsae=y"], "bsae: unknown key (did you mean base?)"),
    ],
)
def test_wrong_commands(stack: Path, engine: FakeEngine, arguments: list[str], message: str, capsys: Any) -> None:
    code, error = error_of(capsys, stack, *arguments)
    assert code == 2
    assert message in error
    assert engine.requests == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "the file has no questions"),
        ('{"story": "x", "question": "y"}\n{"story": "x"}\n', "question 2: the stack needs field 'question'"),
        ('{"story": "x", "question": "y", "id": 1}\n' * 2, "question 2: id is used twice: '1'"),
        ('{"story": "x", "question": "", "id": 1}\n', "question 1: field 'question' is empty"),
    ],
)
def test_wrong_questions(
    stack: Path, engine: FakeEngine, tmp_path: Path, lines: str, message: str, capsys: Any
) -> None:
    (tmp_path / "in.jsonl").write_text(lines)
    code, error = error_of(capsys, stack, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert (code, message in error) == (2, True), error
    assert not (tmp_path / "out.jsonl").exists()


def test_no_such_stack(tmp_path: Path, stack: Path, capsys: Any) -> None:
    assert "no stack there" in error_of(capsys, tmp_path / "nothing", "x")[1]
    assert "holds no such stack" in error_of(capsys, "embedded:nothing", "x")[1]
    shutil.rmtree(stack / "stages" / "link")
    assert "adapter 'link' is missing" in error_of(capsys, stack, "x")[1]


def test_a_trained_stack_runs_and_refuses_another_base(tmp_path: Path, capsys: Any) -> None:
    base = save_base(tmp_path / "base")
    stack = tmp_path / "stack"
    write_stack(stack, STACK.replace("inputs:", f"base: {base}\ninputs:"))
    for seed, name in enumerate(ADAPTERS):
        save_adapter(stack / "stages" / name, base, seed)
    arguments = ["run", str(stack), "--field", f"question={QUESTION}"]
    assert main([*arguments, STORY, "--set", "stages.1.sampling.max_new_tokens=4"]) == 0
    assert "4 answer" in capsys.readouterr().out
    code, error = error_of(capsys, *arguments[1:], "Mary went to the garden. " + "no " * 200)
    assert (code, "longer than the model's context" in error) == (2, True)
    other = save_base(tmp_path / "other", seed=5)
    code, error = error_of(capsys, *arguments[1:], STORY, "--base", other)
    assert (code, "the adapter was made for another base" in error) == (3, True)
    weights = stack / "stages" / "link" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    code, error = error_of(capsys, *arguments[1:], STORY)
    assert (code, "promises" in error) == (3, True)


def test_loops_of_a_trained_stack_in_step_are_each_loop_alone(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    stack = tmp_path / "stack"
    write_stack(
        stack,
        f"name: loop\nbase: {base}\ninputs: [notes]\nstages:\n"
        '- {name: fold, kind: repeat, over: notes, prompt: "{state} {item}:", sampling: {max_new_tokens: 5}}\n'
        "- {name: both, rule: copy, reads: [fold], arguments: {text: '{fold} {notes}'}}\n",
    )
    save_adapter(stack / "stages" / "fold", base, 3)
    notes = ["Mary went.\nJohn took it.\nyes", "no", "the milk\nthe apple", "Daniel dropped\nthe\napple\nthere"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"notes": text}) + "\n" for text in notes))
    found = []
    for wave in ("1", "4"):
        out = tmp_path / f"out{wave}.jsonl"
        arguments = ["--input", str(tmp_path / "in.jsonl"), "--output", str(out), "--wave", wave, "--dtype", "float32"]
        assert main(["run", str(stack), *arguments]) == 0
        traces = [from_json(line) for line in out.read_text().splitlines()]
        found.append([[(call.prompt, call.value) for call in trace.stage("fold").calls] for trace in traces])
        assert [trace.answer for trace in traces] == [
            f"{trace.stage('fold').value} {text}".strip() for trace, text in zip(traces, notes, strict=True)
        ]
    assert found[0] == found[1]
    assert [len(calls) for calls in found[0]] == [3, 1, 2, 4]
