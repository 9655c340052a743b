"""`cairn blame`, and the sections that `cairn compare` gets from it and from the cost of each system."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cairn.verbs.blame as blame_verb
import cairn.verbs.compare as compare_verb
from cairn.cli import main
from cairn.engines.base import GenerationRequest
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import EngineError, InputError
from cairn.evaluation.blame import BlameSettings
from cairn.evaluation.cost import CostSettings
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.registry import task_by_name
from cairn.files import sha256_file
from cairn.verbs.blame import with_handoffs
from cairn.verbs.compare import LookSettings, compare_folders
from cairn.verbs.comparison.answers import Answered
from cairn.verbs.comparison.blame_section import blame_section, question_case
from cairn.verbs.comparison.cost import CostJob
from cairn.verbs.comparison.experiment import TrainedSeed, read_questions_file, trained_seeds
from cairn.verbs.comparison.recipe import CompareSettings
from tests.verbs.tiny_experiment import NUMBERS, scripted, stack, write_base, write_recipe, write_trained

LOOKS = LookSettings(cost=CostSettings(questions=4, warmup=0))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(compare_verb, "base_parameters", lambda seed: 1234)
    return write_trained(tmp_path)


def miscounting(seed: TrainedSeed, adapters: Mapping[str, Path]) -> FakeEngine:
    """As `scripted`, but `count` takes every fourth word for two."""
    right = scripted(seed, adapters)

    def reply(request: GenerationRequest) -> str:
        text = right._script(request)
        if request.adapter == "count" and "Count: one" in request.prompt:
            return f" {NUMBERS[min(NUMBERS.index(text.strip()) + 1, 5)]}"
        return text

    engine = FakeEngine(reply, adapters=list(adapters))
    engine.config = right.config  # type: ignore[attr-defined]
    return engine


def compared(folders: list[Path], out: Path, engine: Any = miscounting, looks: LookSettings = LOOKS) -> dict[str, Any]:
    test = folders[0].parent / "test.jsonl"
    return compare_folders(folders, test, out, CompareSettings(resamples=300), looks, engine=engine)


def test_compare_names_the_stage_that_errs(folders: list[Path], tmp_path: Path) -> None:
    result = compared(folders, tmp_path / "out")
    blame = result["blame"]
    assert blame["weakest"] == "count" and blame["seeds"] == [3, 4] and blame["n"] == 24
    assert blame["own"]["score"] == result["accuracy"]["stack"] < 1 == blame["ceiling"]["score"]
    find, count, answer = blame["stages"]
    assert (find["right"], find["lost_here"]["difference"], answer["by"]) == (1.0, 0.0, "rule")
    assert count["lost_here"]["difference"] == pytest.approx(1 - blame["own"]["score"])
    assert blame["questions_without_gold"] == 0 and blame["settings"]["questions"] == 200
    saved = json.loads((tmp_path / "out" / "result.json").read_text())
    assert saved["blame"] == blame and saved["cost"] == result["cost"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="blame"' in page and "The weakest stage is count" in page and 'id="cost"' in page


def test_every_system_has_a_cost_and_says_what_is_shared(folders: list[Path], tmp_path: Path) -> None:
    result = compared(folders, tmp_path / "out")
    cost = result["cost"]["systems"]
    assert set(cost) == {"base", "single_direct", "single_chain", "vote", "ensemble", "stack"}
    for name, row in cost.items():
        assert row["questions_timed"] == row["latency_ms"]["n"] == 4
        assert row["memory"] == "shared with the other systems"
        assert 0 < row["first_token_ms"]["p50"] <= row["latency_ms"]["p95"]
        assert row["energy"] in ("estimated", "measured")
        assert row["flops_per_question"] == result["flops_per_question"][name]
        right = result["accuracy"][name]
        assert row["energy_j_per_correct"] == pytest.approx(row["energy_j_per_answer"] / right)
    assert cost["stack"]["first_token_ms"] == cost["stack"]["latency_ms"]  # it ends with a rule
    assert cost["vote"]["first_token_ms"] == cost["vote"]["latency_ms"]


def test_both_are_kept_and_left_out_where_nobody_asks(folders: list[Path], tmp_path: Path) -> None:
    opened: list[list[str]] = []

    def counted(seed: TrainedSeed, adapters: Mapping[str, Path]) -> FakeEngine:
        opened.append(sorted(adapters))
        return miscounting(seed, adapters)

    first = compared(folders, tmp_path / "out", counted)
    opened.clear()
    more = LOOKS.model_copy(update={"blame": BlameSettings(pairs=False, worst=1)})
    again = compared(folders, tmp_path / "out", counted, more)
    assert opened == [] and again["blame"]["pairs"] == [] and len(again["blame"]["worst"]) == 1
    assert again["cost"] == first["cost"]
    for one, other in zip(again["blame"]["stages"], first["blame"]["stages"], strict=True):
        assert one["lost_here"]["difference"] == pytest.approx(other["lost_here"]["difference"])
    none = LookSettings(blame=BlameSettings(questions=0), cost=CostSettings(questions=0))
    bare = compared(folders, tmp_path / "out", counted, none)
    assert opened == [] and bare["blame"] is None and bare["cost"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="blame"' not in page and 'id="cost"' not in page


def seeds_and_own(folders: list[Path]) -> tuple[list[TrainedSeed], list[Question], list[list[Answered]]]:
    from cairn.verbs.comparison.answers import Systems

    seeds = trained_seeds(folders)
    asked = read_questions_file(folders[0].parent / "test.jsonl")
    own = [Systems(seed.spec, miscounting(seed, {"find": Path(), "count": Path()}), seed.sizes()).stack(asked)
           for seed in seeds]  # fmt: skip
    return seeds, asked, own


def test_killed_in_the_middle_it_asks_only_what_is_left(folders: list[Path], tmp_path: Path) -> None:
    seeds, asked, own = seeds_and_own(folders)
    task, stages = task_by_name("examples"), [[one.stages for one in made] for made in own]
    requests: list[int] = []

    def engine(seed: TrainedSeed, adapters: Mapping[str, Path]) -> FakeEngine:
        made = miscounting(seed, adapters)
        made.requests = requests  # type: ignore[assignment]
        return made

    def section(place: Path) -> Any:
        return blame_section(seeds, asked, own, stages, task, BlameSettings(), place, engine=engine, resamples=200)

    whole = section(tmp_path / "a")
    file = tmp_path / "a" / "seed-4" / "blame" / "again.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) > 4
    file.write_text("".join(lines[:3]) + lines[3][:20])  # cut off in its third run
    requests.clear()
    assert section(tmp_path / "a") == whole
    assert sorted(file.read_text().splitlines(keepends=True)) == sorted(lines)
    requests.clear()
    assert section(tmp_path / "a") == whole and requests == []


def test_questions_without_gold_are_left_out_and_counted(folders: list[Path], tmp_path: Path) -> None:
    seeds, asked, own = seeds_and_own(folders)
    some = [replace(one, stages={}) if place % 2 else one for place, one in enumerate(asked)]
    stages = [[one.stages for one in made] for made in own]

    def section(given: list[Question], **changes: Any) -> Any:
        return blame_section(
            seeds, given, own, stages, task_by_name("examples"), BlameSettings(**changes), tmp_path,
            engine=miscounting, resamples=200,
        )  # fmt: skip

    found = section(some)
    assert (found["n"], found["questions_without_gold"]) == (12, 12)
    assert section(some, questions=5)["n"] == 5
    assert section([replace(one, stages={}) for one in asked]) is None
    assert section(asked, questions=0) is None
    broken = [replace(asked[0], stages={"find": ("yes",)}), *asked[1:]]
    with pytest.raises(InputError, match="gold hand-offs of question q60 do not fit the stack"):
        section(broken)


def test_gold_of_loops_and_rules_is_what_training_takes_for_it(folders: list[Path]) -> None:
    seeds, asked, own = seeds_and_own(folders)
    one = max(asked, key=lambda question: list(question.stages["find"]).count("yes"))
    case = question_case(seeds[0].spec, one, own[0][asked.index(one)].values)
    kept = [word for word in one.inputs["words"].split("\n") if word == one.inputs["colour"]]
    assert case.gold == {"find": "\n".join(kept), "count": one.answer, "answer": one.answer}
    assert list(case.outputs["count"]) == list(one.stages["count"]) and list(case.outputs["answer"]) == [one.answer]


def test_a_teachers_hand_offs_stand_in_for_gold(folders: list[Path]) -> None:
    asked = read_questions_file(folders[0].parent / "test.jsonl")
    others = [replace(asked[0], stages={"find": ("no",)}), replace(asked[1], id="unknown")]
    found = with_handoffs(asked, others, "teacher.jsonl")
    assert [(one.id, one.stages) for one in found] == [(asked[0].id, {"find": ("no",)})]
    with pytest.raises(Exception, match="none of the questions has hand-offs there"):
        with_handoffs(asked, others[1:], "teacher.jsonl")


def test_the_verb_takes_stacks_and_runs(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(seed: TrainedSeed, adapters: Mapping[str, Path], device: str = "auto") -> FakeEngine:
        return miscounting(seed, adapters)

    monkeypatch.setattr(blame_verb, "open_engine", opened)
    out, test = str(tmp_path / "blamed"), str(tmp_path / "test.jsonl")
    command = ["blame", *map(str, folders), "--test", test, "--out", out, "--limit", "20"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "weakest stage: count" in shown and "points lost here" in shown and "answer (rule)" in shown
    assert main([*command, "--json", "--no-pairs"]) == 0
    section = json.loads(capsys.readouterr().out)
    assert section["weakest"] == "count" and section["n"] == 20 and section["pairs"] == []
    assert main([*command, "--teacher", test, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "teacher"
    assert main(["blame", str(folders[0])]) == 2
    assert "trained stacks need questions with gold hand-offs" in capsys.readouterr().err
    rows = [{**json.loads(line), "stages": {}} for line in Path(test).read_text().splitlines()]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["blame", str(folders[0]), "--test", str(tmp_path / "bare.jsonl"), "--out", out]) == 3
    assert "no question has gold hand-offs" in capsys.readouterr().err


def test_the_verb_finds_seeds_questions_and_scores_in_a_run(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(blame_verb, "open_engine", lambda seed, adapters, device: miscounting(seed, adapters))
    run = tmp_path / "run"
    (run / "data").mkdir(parents=True)
    for seed, folder in zip((3, 4), folders, strict=True):
        (run / f"seed-{seed}").mkdir()
        (run / f"seed-{seed}" / "stack").symlink_to(folder)
    write_recipe(tmp_path, "embedded:base").rename(run / "recipe.yaml")
    (tmp_path / "test.jsonl").rename(run / "data" / "test.jsonl")
    assert main(["blame", str(run), "--json"]) == 0
    section = json.loads(capsys.readouterr().out)
    assert section["seeds"] == [3, 4] and section["n"] == 24 and section["weakest"] == "count"
    assert json.loads((run / "blame.json").read_text()) == section


def test_report_writes_the_page_again(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = compared(folders, tmp_path / "out")
    page = tmp_path / "out" / "report.html"
    before = page.read_text()
    page.unlink()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert page.read_text() == before
    assert "The weakest stage is count" in " ".join(capsys.readouterr().out.split())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["files"]["report.html"] == sha256_file(page)
    assert main(["report", str(tmp_path / "out"), "--traces", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(result))
    assert "2 of 24 questions, wrong answers preferred" in page.read_text()
    assert main(["report", str(tmp_path / "nothing")]) == 3
    assert "no finished comparison there" in capsys.readouterr().err


def test_a_process_of_its_own_measures_one_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare base, which needs no training: its memory is that of a process that holds nothing else."""
    from cairn.evaluation.systems import first_words
    from cairn.stacks.spec import StackSpec
    from cairn.verbs.comparison import cost

    base = write_base(tmp_path / "base")
    asked = [Question(f"q{n}", "g", "t", {"words": "red\nblue", "colour": "red"}, "one") for n in range(3)]
    job = CostJob(
        "base", "base", {}, StackSpec.model_validate(stack(base)), {}, {}, asked, 4, {}, asked,
        {"shots": 1, "base_answer": first_words, "seed": 0}, CostSettings(warmup=1), "cpu",
    )  # fmt: skip
    figures = cost._in_a_process(job)
    assert figures["questions_timed"] == 3 and figures["latency_ms"]["p50"] > 0 and figures["device"] == "cpu"
    assert figures["peak_memory_mib"] >= figures["libraries_mib"] > 50
    assert figures["memory"] == "in a process of its own"
    assert figures["read_tokens_per_second"] > 0 and figures["threads"] >= 1
    monkeypatch.setattr(cost, "_START", "import sys; sys.exit('out of luck')")
    with pytest.raises(EngineError, match="the process that measured base ended with an error: 'out of luck'"):
        cost._in_a_process(job)
