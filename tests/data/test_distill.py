"""Distillation: what a teacher is asked, what of it is kept, and why the rest is not; every stage kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cairn.data.distill_config import distill_config
from cairn.data.examples import read_examples
from cairn.data.teacher import EngineTeacher
from cairn.engines.base import GenerationRequest
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import ConfigError, DataError, EngineError
from cairn.stacks.spec import StackSpec
from cairn.verbs.distill import distill_stack

YES_NO = {"kind": "choices", "values": ["yes", "no"]}
ONE = StackSpec.model_validate(
    {"name": "one", "inputs": ["request"], "stages": [
        {"name": "plan", "prompt": "{request}\nPlan:", "contract": {"kind": "length", "max_words": 5}},
        {"name": "reply", "reads": ["plan"], "prompt": "{request}\n{plan}\nReply:"}]}
)  # fmt: skip
KINDS = StackSpec.model_validate(
    {"name": "kinds", "inputs": ["story", "question"], "stages": [
        {"name": "needed", "kind": "map", "over": "story", "split": "sentences", "keep": "yes", "join": " ",
         "contract": YES_NO, "prompt": "{question}\n{item}\nNeeded:"},
        {"name": "count", "kind": "repeat", "reads": ["needed"], "start": "zero", "until": "done", "at_most": 4,
         "collect": "all", "join": " ", "prompt": "{needed}\n{state}\nNext:"},
        {"name": "copied", "rule": "copy", "arguments": {"text": "{count}!"}, "reads": ["count"]},
        {"name": "final", "reads": ["copied"], "prompt": "{copied}\n{question}\nAnswer:"}]}
)  # fmt: skip
PLAN = {"prompt": "Plan for: {request} (wanted: {gold})"}
STAGES = {"plan": PLAN, "reply": {"value": "{gold}"}}
ROWS = [
    {"id": f"r{n}", "instruction": f"Name the {word} planet.", "input": "", "output": f"The {word} one is planet {n}."}
    for n, word in enumerate(("first", "second", "third", "fourth"))
]


def section(rows: list[dict[str, Any]], folder: Path, **changes: Any) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "planets", "licence": "made for this test", "path": str(path)}
    return {
        "source": source, "inputs": {"request": "{instruction}\n{input}"}, "stages": STAGES,
        "teacher": {"kind": "openai", "url": "http://nowhere/v1", "model": "none"}, **changes,
    }  # fmt: skip


def make(
    out: Path, settings: dict[str, Any], script: Any, spec: StackSpec = ONE, system: str | None = None, **given: Any
) -> tuple[dict[str, Any], FakeEngine]:
    engine = FakeEngine(script)
    teacher = EngineTeacher(engine, "fake", system=system, batch=3)
    config = distill_config(settings, spec, "test.yaml")
    return distill_stack(spec, config, out, teacher=teacher, **given), engine


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_examples_with_the_origin_of_every_hand_off(tmp_path: Path) -> None:
    report, engine = make(tmp_path / "out", section(ROWS, tmp_path), lambda request: " say its name ")
    assert report["complete"] and report["kept"] == 4 and report["answers"]["calls"] == 4
    assert engine.requests[0].prompt == "Plan for: Name the first planet. (wanted: The first one is planet 0.)"
    assert engine.batches == [3, 1]
    out = tmp_path / "out"
    first, *_ = rows_of(out / "train.jsonl")
    assert first == {
        "id": "r0", "inputs": {"request": "Name the first planet."}, "answer": "The first one is planet 0.",
        "stages": {"plan": "say its name", "reply": "The first one is planet 0."},
    }  # fmt: skip
    assert [one.id for one in read_examples(out / "train.jsonl", ONE)] == ["r0", "r1", "r2", "r3"]
    origin = rows_of(out / "provenance.jsonl")[0]
    assert {key: origin[key] for key in ("id", "split", "source", "licence", "row")} == {
        "id": "r0", "split": "train", "source": "planets", "licence": "made for this test", "row": 1,
    }  # fmt: skip
    assert origin["stages"]["reply"] == [{"by": "row"}]
    (plan,) = origin["stages"]["plan"]
    answer = rows_of(out / "answers.jsonl")[0]
    assert plan["by"] == "teacher" and plan["teacher"] == "fake" and plan["attempt"] == 0
    assert plan["prompt_sha256"] == answer["prompt_sha256"] and plan["sampling"] == answer["sampling"]
    assert plan["sampling"]["seed"] == engine.requests[0].sampling.seed
    assert len({request.sampling.seed for request in engine.requests}) == 4
    assert (out / "manifest.json").exists()


def test_a_finished_run_is_not_asked_again_and_replays_from_its_answers(tmp_path: Path) -> None:
    settings = section(ROWS, tmp_path)
    make(tmp_path / "out", settings, lambda request: "say its name")
    _, engine = make(tmp_path / "out", settings, lambda request: pytest.fail("asked again"))
    recorded = {**settings, "teacher": {"kind": "recorded", "path": str(tmp_path / "out" / "answers.jsonl")}}
    config = distill_config(recorded, ONE, "test.yaml")
    report = distill_stack(ONE, config, tmp_path / "again")
    for name in ("train.jsonl", "provenance.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert report["teacher"] == "recorded:answers.jsonl"
    with pytest.raises(ConfigError, match="made with other settings.*stages.plan.prompt"):
        make(tmp_path / "out", {**settings, "stages": {**STAGES, "plan": {"prompt": "{request}?"}}}, "x")
    more, engine = make(
        tmp_path / "more", {**settings, "tries": 3}, lambda request: pytest.fail("asked"),
        answers=[tmp_path / "out" / "answers.jsonl"],
    )  # fmt: skip
    assert more["kept"] == 4 and more["answers"]["calls"] == 0, "answers of another run cost nothing"


def test_every_stage_kind_is_filled(tmp_path: Path) -> None:
    story = "Ann took the cup. Bob slept. Ann went home."
    rows = [{"story": story, "question": "Where is the cup?", "answer": "home"}]

    def reply(request: GenerationRequest) -> str:
        if "Needed?" in request.prompt:
            return "No" if "Bob" in request.prompt else "yes"
        return {"zero": "one", "one": "two", "two": "done"}[request.prompt.split()[-1]]

    settings = section(rows, tmp_path, inputs={}, stages={
        "needed": {"prompt": "{question} Needed? {item}"},
        "count": {"prompt": "Count on from {state}"},
        "final": {"value": "{gold}"},
    })  # fmt: skip
    spec = KINDS.model_copy(deep=True)
    loose = {**YES_NO, "ignore_case": True}
    spec = StackSpec.model_validate({**spec.model_dump(), "stages": [
        {**stage.model_dump(exclude_defaults=True), **({"contract": loose} if stage.name == "needed" else {})}
        for stage in spec.stages]})  # fmt: skip
    report, engine = make(tmp_path / "out", settings, reply, spec)
    (row,) = rows_of(tmp_path / "out" / "train.jsonl")
    assert row["stages"] == {"needed": ["yes", "no", "yes"], "count": ["one", "two", "done"], "final": "home"}
    (example,) = read_examples(tmp_path / "out" / "train.jsonl", spec)
    assert example.stages["copied"] == ("one two!",) or example.stages["copied"] == "one two!"
    origins = rows_of(tmp_path / "out" / "provenance.jsonl")[0]["stages"]
    assert {name: {one["by"] for one in made} for name, made in origins.items()} == {
        "needed": {"teacher"}, "count": {"teacher"}, "copied": {"rule"}, "final": {"row"},
    }  # fmt: skip
    assert len(engine.requests) == 6 and report["stages"]["count"]["accepted"] == 1


def test_a_loop_that_does_not_end_and_a_wrong_number_of_lines_are_rejected(tmp_path: Path) -> None:
    rows = [{"story": "A b. C d.", "question": f"q{n}?", "answer": "x", "lines": "yes\nno" if n else "yes"}
            for n in range(2)]  # fmt: skip
    settings = section(rows, tmp_path, inputs={}, stages={
        "needed": {"value": "{lines}"}, "count": {"prompt": "on from {state} {question}"},
        "final": {"value": "{gold}"},
    })  # fmt: skip
    with pytest.raises(DataError, match=r"no row gave an example \(count 1, contract 1\)"):
        make(tmp_path / "out", settings, lambda request: "again", KINDS)
    first, second = rows_of(tmp_path / "out" / "rejected.jsonl")
    assert (first["kind"], first["stage"], first["detail"]) == ("count", "needed", "1 texts for 2 calls")
    assert second["stage"] == "count" and "at_most 4" in second["detail"]


BAD = [
    ("way too many words for this plan", "contract", "promised at most 5 words"),
    ("", "empty", "no text"),
    ("I'm sorry, but I cannot help.", "garbage", "an apology instead of work"),
    ("\x00\x01\x02\x03", "garbage", "4 of 4 characters are no text"),
    ("ho ho ho ho ho ho ho", "garbage", "'ho' over and over"),
    ("\ud83d", "garbage", "half of a character"),
    ("привет мир", "another language", "letters of another script"),
]


@pytest.mark.parametrize(("text", "kind", "detail"), BAD)
def test_what_cannot_be_used_is_asked_again_and_then_recorded(
    tmp_path: Path, text: str, kind: str, detail: str
) -> None:
    def reply(request: GenerationRequest) -> str:
        if "second" in request.prompt:
            return "bad at first " * 3 if request.sampling.temperature < 0.5 else "good now"
        return text if "third" in request.prompt else "fine"

    greedy = {"max_new_tokens": 9}
    settings = section(ROWS, tmp_path, language="en", stages={**STAGES, "plan": {**PLAN, "sampling": greedy}})
    report, engine = make(tmp_path / "out", settings, reply)
    assert report["complete"] and report["kept"] == 3
    assert report["stages"]["plan"] | {"words": 0, "commonest": 0} == {
        "accepted": 3, "again": 2, "rejected": {kind: 1}, "texts": 3, "distinct": 2, "words": 0, "commonest": 0,
        "characters_most": 8,
    }  # fmt: skip
    (gone,) = rows_of(tmp_path / "out" / "rejected.jsonl")
    assert (gone["id"], gone["stage"], gone["kind"], gone["text"]) == ("r2", "plan", kind, text)
    assert detail in gone["detail"]
    again = [request.sampling for request in engine.requests if "third" in request.prompt]
    assert [one.temperature for one in again] == [0, 0.7] and again[0].seed != again[1].seed
    _, engine = make(tmp_path / "out", settings, lambda request: pytest.fail("asked again"))


@pytest.mark.parametrize(("lines", "fault"), [
    ("one\ndone", None), ("one\ntwo", "2 texts for a loop that goes on"), ("done\none", "2 texts for 1 calls"),
    ("a\nb\nc\nd", "4 texts for a loop that goes on"),
])  # fmt: skip
def test_a_loop_taken_from_the_row_must_end_as_the_stack_says(tmp_path: Path, lines: str, fault: str | None) -> None:
    rows = [{"story": "A b.", "question": "q?", "answer": "x", "lines": text} for text in ("done", lines)]
    rows[1]["question"] = "another?"
    stages = {"needed": {"value": "yes"}, "count": {"value": "{lines}"}, "final": {"value": "{gold}"}}
    config = distill_config(section(rows, tmp_path, inputs={}, stages=stages, teacher=None), KINDS, "test.yaml")
    report = distill_stack(KINDS, config, tmp_path / "out")
    gone = rows_of(tmp_path / "out" / "rejected.jsonl")
    assert [one["detail"] for one in gone] == ([fault] if fault else []) and report["kept"] == 2 - len(gone)


def test_a_rule_that_fails_takes_its_row_out(tmp_path: Path) -> None:
    spec = StackSpec.model_validate({"name": "sum", "inputs": ["expression"], "stages": [
        {"name": "worth", "rule": "calculate"}, {"name": "reply", "reads": ["worth"], "prompt": "{worth}. Reply:"}]}
    )  # fmt: skip
    rows = [{"expression": "2 + 3", "answer": "five"}, {"expression": "two and three", "answer": "five"}]
    settings = section(rows, tmp_path, inputs={}, stages={"reply": {"value": "{gold}"}}, teacher=None)
    report = distill_stack(spec, distill_config(settings, spec, "test.yaml"), tmp_path / "out")
    assert report["kept"] == 1 and report["rejected"]["rule failed"]["rows"] == 1
    assert rows_of(tmp_path / "out" / "train.jsonl")[0]["stages"] == {"reply": "five"}
    by = [{name: made[0]["by"] for name, made in row["stages"].items()}
          for row in rows_of(tmp_path / "out" / "provenance.jsonl")]  # fmt: skip
    assert by == [{"worth": "rule", "reply": "row"}]


def test_a_text_cut_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    class Short(FakeEngine):
        def generate(self, requests: Any) -> Any:
            from dataclasses import replace

            return [replace(made, finish="length") for made in super().generate(requests)]

    teacher = EngineTeacher(Short(lambda request: "half of a"), "short")
    config = distill_config(section(ROWS[:1], tmp_path), ONE, "test.yaml")
    with pytest.raises(DataError, match="cut off 1"):
        distill_stack(ONE, config, tmp_path / "out", teacher=teacher)
    assert rows_of(tmp_path / "out" / "rejected.jsonl")[0]["detail"] == "cut off at 256 tokens"


def test_rows_are_left_out_before_any_call(tmp_path: Path) -> None:
    long = {"id": "long", "instruction": "x " * 5000, "output": "y"}
    known = "which of these nine planets is the one that people once called the evening star"
    rows = [
        *ROWS[:2], {"id": "same", "instruction": "  name the FIRST planet", "output": "z"}, {"id": "r0", **ROWS[2]},
        {**ROWS[2], "id": "r0"}, {"id": "no", "instruction": "Name one."}, long,
        {"id": "test", "instruction": known, "output": "Venus"},
    ]  # fmt: skip
    rows[3]["id"] = "r3x"
    evaluation = tmp_path / "eval.jsonl"
    evaluation.write_text(json.dumps({"text": f"Quiz: {known}?"}) + "\n")
    settings = section(rows, tmp_path, keep_out=[{"name": "quiz", "path": str(evaluation), "licence": "none"}])
    report, engine = make(tmp_path / "out", settings, lambda request: "a plan")
    kinds = {kind: one["rows"] for kind, one in report["rejected"].items()}
    assert kinds == {"seen before": 1, "id used twice": 1, "missing field": 1, "too long": 1, "evaluation text": 1}
    assert report["evaluation_sets"] == {"quiz": {"rows_with_its_text": 1}}
    assert len(engine.requests) == report["kept"] == 3
    reasons = {one["id"]: one["detail"] for one in rows_of(tmp_path / "out" / "rejected.jsonl")}
    assert reasons["same"] == "says the same as row r0" and "output is missing" in reasons["no"]
    assert "id 'r0' was used in row 1" in reasons["r0"] and "10,005 characters, allowed: 8,000" in reasons["long"]
    assert sum(one["rows"] for one in report["rejected"].values()) + report["kept"] == report["rows"] == 8


def test_a_teacher_that_recites_an_evaluation_set_is_noticed(tmp_path: Path) -> None:
    known = "the quick brown fox jumps over the lazy dog while seven small cats look on in silence"
    evaluation = tmp_path / "eval.jsonl"
    evaluation.write_text(json.dumps({"text": known}) + "\n")
    stages = {"plan": {"value": "none"}, "reply": {"prompt": "{request}"}}
    settings = section(
        ROWS, tmp_path, stages=stages, keep_out=[{"name": "foxes", "path": str(evaluation), "licence": "none"}]
    )
    report, _ = make(tmp_path / "out", settings, {"first": known, "": "A planet."})
    assert report["kept"] == 3 and report["rejected"]["evaluation text"]["rows"] == 1


def test_only_chains_that_end_right_if_wanted(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": "The cat."} for n in range(3)]
    stages = {"plan": {"value": "none"}, "reply": {"prompt": "{request}", "take": "last_line"}}
    settings = section(rows, tmp_path, inputs={"request": "{question}"}, stages=stages, must_match=True)
    script = {"q0": "Let me see.\ncat", "q1": "<think>dog?</think>\na Cat!", "": "dog"}
    report, _ = make(tmp_path / "out", settings, script)
    assert report["kept"] == 2 and report["rejected"]["not the right answer"]["rows"] == 1
    assert [row["answer"] for row in rows_of(tmp_path / "out" / "train.jsonl")] == ["cat", "a Cat!"]


def test_a_share_is_kept_apart_for_testing_whatever_the_order(tmp_path: Path) -> None:
    settings = section(ROWS, tmp_path, test_examples=2)
    report, _ = make(tmp_path / "out", settings, lambda request: "a plan")
    held = {row["id"] for row in rows_of(tmp_path / "out" / "test.jsonl")}
    assert report["test"] == 2 and not held & {row["id"] for row in rows_of(tmp_path / "out" / "train.jsonl")}
    make(tmp_path / "turned", section(ROWS[::-1], tmp_path, test_examples=2), lambda request: "a plan")
    assert {row["id"] for row in rows_of(tmp_path / "turned" / "test.jsonl")} == held
    few = section(ROWS, tmp_path, source={**settings["source"], "limit": 2})
    limited, _ = make(tmp_path / "few", few, lambda request: "a plan")
    assert limited["kept"] == 2 and limited["not_drawn"] == 2


@pytest.mark.parametrize(("limit", "given"), [({"max_calls": 3}, 3), ({"max_tokens": 300}, 2)])
def test_a_budget_stops_in_a_state_that_goes_on(tmp_path: Path, limit: dict[str, int], given: int) -> None:
    settings = section(ROWS, tmp_path, wave=1)
    said: list[str] = []
    report, engine = make(tmp_path / "out", settings, lambda request: "a plan", say=said.append, **limit)
    assert len(engine.requests) == given == report["kept"] and not report["complete"]
    name = next(iter(limit)).replace("_", "-")
    assert said[-1].startswith(f"stopped at the budget (--{name} ") and "goes on" in said[-1]
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert len(read_examples(tmp_path / "out" / "train.jsonl", ONE)) == given, "what is there can be used"
    again, engine = make(tmp_path / "out", settings, lambda request: "a plan", say=said.append, **limit)
    assert not engine.requests and again["kept"] == given, "the budget is of all runs together"
    whole, engine = make(tmp_path / "out", settings, lambda request: "a plan")
    assert len(engine.requests) == 4 - given and whole["complete"]
    make(tmp_path / "once", settings, lambda request: "a plan")
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == (tmp_path / "once" / "train.jsonl").read_bytes()


def test_a_teacher_that_is_down_ends_the_run_and_nothing_is_lost(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "id": f"n{n}", "instruction": f"Name planet {n}."} for n in range(30)]

    def dies(request: GenerationRequest) -> str:
        if len(engine_requests) >= 5:
            raise EngineError("no connection", next="start it")
        engine_requests.append(request)
        return "a plan"

    class OneByOne(FakeEngine):
        def generate_each(self, requests: Any, done: Any, *, go: Any) -> None:
            for place, request in enumerate(requests):
                if go(place):
                    try:
                        done(place, self.generate([request])[0])
                    except EngineError as error:
                        done(place, error)

    engine_requests: list[GenerationRequest] = []
    settings = section(rows, tmp_path, wave=4)
    config = distill_config(settings, ONE, "test.yaml")
    with pytest.raises(EngineError, match=r"failed 8 times in a row \(no connection\).*start it"):
        distill_stack(ONE, config, tmp_path / "out", teacher=EngineTeacher(OneByOne(dies), "weak"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["kept"] == 5 and not report["complete"] and "no connection" in report["stopped"]
    engine = OneByOne(lambda request: "a plan")
    done = distill_stack(ONE, config, tmp_path / "out", teacher=EngineTeacher(engine, "well"))
    assert done["complete"] and done["kept"] == 30 and len(engine.requests) == 25
    assert {row["teacher"] for row in rows_of(tmp_path / "out" / "answers.jsonl")} == {"weak", "well"}


def test_a_prompt_that_a_batch_engine_refuses_takes_only_its_row_out(tmp_path: Path) -> None:
    from cairn.errors import InputError

    def reply(request: GenerationRequest) -> str:
        if "third" in request.prompt:
            raise InputError("the input is longer than the model's context")
        return "a plan"

    report, _ = make(tmp_path / "out", section(ROWS, tmp_path), reply)
    assert report["kept"] == 3 and report["rejected"]["refused"]["rows"] == 1


def test_a_contract_that_nothing_satisfies_ends_the_run_early(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "id": f"n{n}", "instruction": f"Name planet {n}."} for n in range(40)]
    settings = section(rows, tmp_path, wave=5, give_up_after=10)
    with pytest.raises(DataError, match="(?s)nothing satisfies stage plan: 10 rows rejected.*promised at most 5 words"):
        make(tmp_path / "out", settings, lambda request: "one two three four five six")
    assert len(rows_of(tmp_path / "out" / "answers.jsonl")) == 20, "two tries for each of ten rows"


def test_the_same_prompt_is_asked_once(tmp_path: Path) -> None:
    settings = section(ROWS, tmp_path, stages={**STAGES, "plan": {"prompt": "Any plan."}})
    report, engine = make(tmp_path / "out", settings, lambda request: "a plan", system="Short.")
    assert len(engine.requests) == 1 and report["kept"] == 4


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"stages": {"plan": PLAN}}, "stages.reply: required, but missing"),
        ({"stages": {**STAGES, "pln": PLAN}}, r"stages.pln: no such stage \(did you mean plan\?\)"),
        ({"stages": {**STAGES, "plan": {"prompt": "{reply}"}}}, r"stages.plan: uses \{reply\}, which is not made"),
        ({"stages": {**STAGES, "plan": {"prompt": "{item}"}}}, r"uses \{item\}"),
        ({"stages": {**STAGES, "plan": {"prompt": "{oops"}}}, "stages.plan: single '{' at character 0"),
        ({"stages": {**STAGES, "plan": {}}}, "give prompt, for the teacher, or value"),
        ({"inputs": {"requst": "{a}"}}, r"inputs.requst: the stack has no such input \(did you mean request\?\)"),
        ({"teacher": None}, "stages.plan: has a prompt, but there is no teacher"),
        ({"teacher": {"kind": "rule", "function": "qa"}}, "stages.plan: a rule teacher is asked nothing"),
        ({"teacher": {"kind": "openai", "model": "x"}}, "url: required, but missing"),
        ({"laguage": "en"}, r"laguage: unknown key \(did you mean language\?\)"),
        ({"source": {"name": "x", "licence": "y"}}, "give exactly one of path, hub"),
    ],
)
def test_faults_of_the_section(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        distill_config(section(ROWS, tmp_path, **change), ONE, "test.yaml")


def test_two_processes_do_not_share_a_folder(tmp_path: Path, python: Callable) -> None:
    from cairn.data.distill_answers import Answers

    held = Answers(tmp_path / "answers.jsonl")
    done = python("-c", f"from cairn.data.distill_answers import Answers; Answers({str(tmp_path / 'answers.jsonl')!r})")
    held.close()
    assert "another process is making these examples" in done.stderr
    Answers(tmp_path / "answers.jsonl").close()
