"""What stands in a result beside the harness's figures: intervals, chance, ties, floors; and resuming."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from cairn.engines.fake_engine import FakeEngine
from cairn.errors import DataError, EngineError
from cairn.evaluation.harness import score_tasks
from cairn.evaluation.harness_data import LocalData
from cairn.evaluation.harness_lm import HarnessModel
from cairn.evaluation.harness_tasks import load_tasks
from cairn.evaluation.statistics import wilson_interval
from cairn.evaluation.tiny_irt import IrtFile, load_irt
from tests.evaluation.harness_files import FILES, blimp_row, write_files
from tests.evaluation.test_tiny_irt import parameters


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LocalData:
    return LocalData(write_files(tmp_path_factory.mktemp("data")))


def scorer() -> HarnessModel:
    """Likes short texts: its log-probability is minus the length."""
    return HarnessModel(FakeEngine(scores=lambda request: -float(len(request.continuation))))


def test_an_entry_holds_figure_interval_chance_versions_and_settings(data: LocalData) -> None:
    found = score_tasks(scorer(), load_tasks(["arc_easy"], data=data, shots={"arc_easy": 1}, seed=5), limit=7)
    entry = found["tasks"]["arc_easy"]
    right = sum(row["answerKey"] == row["choices"]["label"][0] for row in FILES["arc_easy_test"][:7])
    acc = entry["metrics"]["acc,none"]
    assert acc["value"] == right / 7 and acc["ci95"] == list(wilson_interval(right, 7)) and acc["stderr"] > 0
    assert entry["choices"] == {"3": 3, "4": 2, "5": 2}  # of unequal count
    assert entry["chance"] == pytest.approx((3 / 3 + 2 / 4 + 2 / 5) / 7)
    assert (entry["n"], entry["n_split"], entry["shots"], entry["version"]) == (7, 8, 1, 1.0)
    assert entry["dataset"] == {"path": "allenai/ai2_arc", "name": "ARC-Easy", "split": "test"}
    assert set(entry["files"]) == {"train", "test"} and len(entry["prompts_sha256"]) == 64
    assert found["lm_eval"] and found["seed"] == 5 and found["asked"] == ["arc_easy"]
    json.dumps(found, allow_nan=False)
    again = score_tasks(scorer(), load_tasks(["arc_easy"], data=data, shots={"arc_easy": 1}, seed=5), limit=7)
    other = score_tasks(scorer(), load_tasks(["arc_easy"], data=data, shots={"arc_easy": 1}, seed=6), limit=7)
    assert again["tasks"]["arc_easy"]["prompts_sha256"] == entry["prompts_sha256"]
    assert other["tasks"]["arc_easy"]["prompts_sha256"] != entry["prompts_sha256"]


def test_the_best_constant_choice_stands_beside_the_figure(data: LocalData) -> None:
    entry = score_tasks(scorer(), load_tasks(["hellaswag"], data=data))["tasks"]["hellaswag"]
    assert entry["constant"] == {"place": 0, "accuracy": 0.25} and entry["chance"] == 0.25
    assert "file without ctx_a and ctx_b" in entry["notes"][0]
    blimp = score_tasks(scorer(), load_tasks(["blimp_passive_1"], data=data))["tasks"]["blimp_passive_1"]
    assert "constant" not in blimp and blimp["chance"] == 0.5  # the good sentence is always the first


def test_blimp_ties_are_told_in_both_ways(tmp_path: Path) -> None:
    import lm_eval.tasks
    import yaml

    group = yaml.safe_load((Path(lm_eval.tasks.__file__).parent / "blimp" / "_blimp.yaml").read_text())
    uids = [name.removeprefix("blimp_") for name in group["task"]]
    rows = [blimp_row(number, uid) for uid in uids for number in (1, 2)]  # the second is a tie
    (tmp_path / "blimp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = FakeEngine(scores=lambda request: -1.0 if "went to" in request.continuation else -2.0)
    found = score_tasks(HarnessModel(engine), load_tasks(["blimp"], data=LocalData(tmp_path)))
    blimp = found["groups"]["blimp"]
    assert len(uids) == 67 and blimp["n"] == 134
    assert blimp["metrics"]["acc,none"]["value"] == 1.0  # a tie counts as right
    assert blimp["ties_half"]["accuracy"] == 0.75 and blimp["ties_half"]["ties"] == 67
    assert len(blimp["ties_half"]["paradigms"]) == 67 and blimp["chance"] == 0.5
    assert engine.score_requests[0].continuation.startswith(" Mary")  # the harness puts a space before


def test_groups_are_aggregated_by_the_harness(data: LocalData, tmp_path: Path) -> None:
    group = tmp_path / "group.yaml"
    group.write_text(
        "group: both\ntask: [arc_easy, openbookqa]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\nmetadata: {version: 2}\n"
    )
    from lm_eval.tasks import TaskManager

    import cairn.evaluation.harness_tasks as harness_tasks

    root = Path(harness_tasks.importlib.util.find_spec("lm_eval.tasks").origin).parent
    manager = TaskManager(
        include_defaults=False, include_path=[str(root / "arc"), str(root / "openbookqa"), str(tmp_path)]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness_tasks, "_manager", lambda _: manager)
        loaded = load_tasks(["both"], data=data, shots={"both": 0})
    found = score_tasks(scorer(), loaded)
    tasks, both = found["tasks"], found["groups"]["both"]
    assert both["n"] == 9 and both["tasks"] == ["arc_easy", "openbookqa"] and both["version"] == "2"
    arc, book = (tasks[name]["metrics"]["acc,none"]["value"] for name in both["tasks"])
    assert both["metrics"]["acc,none"]["value"] == pytest.approx((8 * arc + book) / 9)
    assert both["chance"] == pytest.approx((8 * tasks["arc_easy"]["chance"] + 0.25) / 9)


@pytest.fixture(scope="module")
def irt(tmp_path_factory: pytest.TempPathFactory) -> IrtFile:
    """A parameter file whose ARC items are those of the data, in another order."""
    content = parameters()
    bench = content["lb"]
    positions = list(range(1200))
    bench["scenarios_position"]["arc"] = [150 + item for item in positions]
    bench["subscenarios_position"]["arc"] = {"all": bench["scenarios_position"]["arc"]}
    bench["seen_examples"][100:] = [150 + row["index"] for row in FILES["tinybenchmarks_anchor_items"][:100]][::-1]
    import numpy as np

    random = np.random.default_rng(0)
    bench["irt_parameters"] = {name: random.uniform(0.2, 1, (1, 2, 1350)) for name in "AB"}
    path = tmp_path_factory.mktemp("irt") / "tiny.pkl"
    path.write_bytes(pickle.dumps(content))
    return load_irt(path)


def test_tiny_sets_show_raw_accuracy_estimate_and_floors(data: LocalData, irt: IrtFile, tmp_path: Path) -> None:
    loaded = load_tasks(["tinyArc"], data=data, shots={"tinyArc": 0})
    entry = score_tasks(scorer(), loaded, irt=irt, items=tmp_path / "items")["tasks"]["tinyArc"]
    rows = [json.loads(line) for line in (tmp_path / "items" / "tinyArc.jsonl").read_text().splitlines()]
    right = [row["metrics"]["acc_norm,none"] for row in rows]
    raw = entry["metrics"]["acc_norm,none"]
    assert raw["value"] == sum(right) / 100 and raw["ci95"] == list(wilson_interval(sum(right), 100))
    estimate = entry["gp_irt"]["estimates"]["acc_norm,none"]
    assert estimate == irt.estimate(right[::-1], "arc")  # in the order of the parameter file
    floors = entry["gp_irt"]["floors"]
    assert floors["random"]["accuracy"] == pytest.approx(0.25, abs=0.02) and len(floors["constant"]) == 4
    assert any("not verified" in note for note in entry["notes"])


@pytest.mark.parametrize(("limit", "other", "reason"), [
    (None, None, "no parameter file was given"), (9, "same", "9 of 100 items were scored"),
    (None, "foreign", "the items are not those that the parameter file was made for"),
])  # fmt: skip
def test_without_the_right_file_there_is_no_estimate_and_the_entry_says_why(
    data: LocalData, irt: IrtFile, tmp_path: Path, limit: int | None, other: str | None, reason: str
) -> None:
    if other == "foreign":
        (tmp_path / "foreign.pkl").write_bytes(pickle.dumps(parameters()))
        irt = load_irt(tmp_path / "foreign.pkl")
    loaded = load_tasks(["tinyArc"], data=data, shots={"tinyArc": 0})
    entry = score_tasks(scorer(), loaded, limit=limit, irt=irt if other else None)["tasks"]["tinyArc"]
    assert reason in entry["gp_irt"]["missing"] and "estimates" not in entry["gp_irt"]
    assert "acc_norm,none" in entry["metrics"]


def test_generated_code_is_scored_in_the_sandbox(data: LocalData, tmp_path: Path) -> None:
    engine = FakeEngine({"same": "    return x", "one": "    while True: pass"})
    loaded = load_tasks(["humaneval"], data=data)
    loaded.checker._seconds = 0.3
    entry = score_tasks(HarnessModel(engine), loaded, items=tmp_path / "items")["tasks"]["humaneval"]
    assert entry["metrics"]["pass@1,create_test"]["value"] == 0.5
    assert entry["code"]["outcomes"] == {"passed": 1, "timeout": 1} and "rlimits" in entry["code"]["held_by"]
    rows = [json.loads(line) for line in (tmp_path / "items" / "humaneval.jsonl").read_text().splitlines()]
    assert [row["code"][0]["outcome"] for row in rows] == ["passed", "timeout"]
    assert entry["items"] == "items/humaneval.jsonl"


def test_open_questions_and_sums_are_scored_by_the_harness(data: LocalData) -> None:
    engine = FakeEngine({"Q: ": " the kitchen", "Where is the milk": " Garden", "1 + 1": " It is\n#### 2"})
    found = score_tasks(HarnessModel(engine), load_tasks(["nq_open", "triviaqa", "gsm8k"], data=data))["tasks"]
    assert found["triviaqa"]["metrics"]["exact_match,remove_whitespace"]["value"] == 1.0
    assert found["nq_open"]["metrics"]["exact_match,remove_whitespace"]["value"] == 1.0
    assert found["gsm8k"]["metrics"]["exact_match,strict-match"]["value"] == 1.0 and found["gsm8k"]["shots"] == 5


def test_an_interrupted_run_goes_on_with_the_tasks_that_are_left(data: LocalData) -> None:
    kept: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def keep(key: str, entry: dict[str, Any]) -> None:
        kept[key] = json.loads(json.dumps(entry))
        raise Stop

    names = ["openbookqa", "boolq"]
    with pytest.raises(Stop):
        score_tasks(scorer(), load_tasks(names, data=data), on_task=keep)
    engine = FakeEngine(scores=lambda request: -float(len(request.continuation)))
    found = score_tasks(HarnessModel(engine), load_tasks(names, data=data), done=kept)
    assert len(engine.score_requests) == 4  # boolq alone
    whole = score_tasks(scorer(), load_tasks(names, data=data))
    for name in names:
        for entry in (found["tasks"][name], whole["tasks"][name]):
            entry.pop("seconds")
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(whole))
    engine = FakeEngine(scores=lambda request: -float(len(request.continuation)))
    score_tasks(HarnessModel(engine), load_tasks(names, data=data, shots={"boolq": 0}), done=kept, limit=1)
    assert len(engine.score_requests) == 4 + 2  # another limit is another run


def test_faults_are_known_before_the_first_score(data: LocalData, tmp_path: Path) -> None:
    row = {"query": "Milk is", "choices": ["white"], "gold": 0}
    (tmp_path / "openbook_qa.jsonl").write_text(json.dumps(row) + "\n")
    engine = FakeEngine(scores=[0.0])
    with pytest.raises(DataError, match="openbookqa, document 0: the right choice 0 is none of 1 choices"):
        score_tasks(HarnessModel(engine), load_tasks(["openbookqa"], data=LocalData(tmp_path)))
    with pytest.raises(EngineError, match="engine fake cannot do what is needed: 'logprobs'"):
        score_tasks(HarnessModel(FakeEngine(["x"])), load_tasks(["nq_open", "boolq"], data=data))


def test_progress_is_told_by_task(data: LocalData) -> None:
    told: list[tuple[str, int, int]] = []
    score_tasks(
        scorer(), load_tasks(["openbookqa"], data=data),
        progress=lambda name: lambda done, total: told.append((name, done, total)),
    )  # fmt: skip
    assert told == [("openbookqa", 4, 4)]
