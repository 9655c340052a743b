"""The harness's own tasks, built from local files, without a network and without code from the hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cairn.errors import DataError, EngineError, InputError, MissingExtraError
from cairn.evaluation import harness_tasks
from cairn.evaluation.harness_data import LocalData
from cairn.evaluation.harness_tasks import ALL_TASKS, load_tasks, offline
from tests.evaluation.harness_files import FILES, write_files


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LocalData:
    return LocalData(write_files(tmp_path_factory.mktemp("data")))


NAMES = ["arc_easy", "arc_challenge", "boolq", "gsm8k", "hellaswag", "humaneval", "mmlu_anatomy",
         "mmlu_anatomy_continuation", "nq_open", "openbookqa", "tinyArc", "tinyMMLU", "triviaqa", "winogrande",
         "blimp_passive_1"]  # fmt: skip


def test_every_task_that_is_promised_is_built_from_local_files(data: LocalData) -> None:
    loaded = load_tasks(NAMES, data=data, shots={"tinyArc": 0})
    assert list(loaded.tasks) == NAMES and loaded.asked == NAMES and loaded.seed == 1234
    text = {name: task.doc_to_text(task.eval_docs[0]) for name, task in loaded.tasks.items()}
    assert text["arc_easy"] == "Question: Where is the kitchen of John?\nAnswer:"
    assert text["boolq"] == "Milk is white.\nQuestion: is milk white?\nAnswer:"
    assert text["hellaswag"] == "Milk: A man takes the kitchen. He"  # the harness's own cleaning ran
    assert text["humaneval"] == FILES["humaneval"][0]["prompt"]
    assert text["mmlu_anatomy"].endswith("\nD. bread\nAnswer:") and "\nA. " not in text["mmlu_anatomy_continuation"]
    assert text["winogrande"] == 1  # the place of the right option: contexts are the choices
    assert loaded.shots["gsm8k"] == 5 and loaded.shots["arc_easy"] == 0  # the tasks' own
    assert loaded.tasks["arc_easy"].VERSION == 1.0
    files = {split: path.name.split(".")[0] for split, path in loaded.splits["gsm8k"].files.items()}
    assert files == {"test": "gsm8k_test", "train": "gsm8k_train"}


def test_the_harness_keeps_nothing_of_our_stand_ins(data: LocalData) -> None:
    import evaluate

    before = evaluate.load
    loaded = load_tasks(["humaneval", "tinyMMLU"], data=data)
    assert evaluate.load is before and "tinyBenchmarks" not in sys.modules
    assert not [name for name in sys.modules if name.startswith("lm_eval.tasks.") and "humaneval" in name]
    (metric,) = loaded.tasks["humaneval"]._metric_fn_list.values()
    solved = [FILES["humaneval"][0]["prompt"] + "    return x\n"]
    tests = FILES["humaneval"][0]["test"] + "\ncheck(same)"
    assert metric(references=[tests], predictions=[solved], k=[1]) == {"pass@1": 1.0}
    assert loaded.checker.facts()["outcomes"] == {"passed": 1}  # and not the trial at import


def test_shots_are_the_users_where_a_task_takes_any(data: LocalData) -> None:
    loaded = load_tasks(
        ["arc_easy", "gsm8k", "tinyMMLU", "blimp_passive_1"], data=data, shots={ALL_TASKS: 2, "gsm8k": 1}, seed=7
    )
    assert loaded.shots == {"arc_easy": 2, "gsm8k": 1, "tinyMMLU": 0, "blimp_passive_1": 0} and loaded.seed == 7
    assert loaded.notes["tinyMMLU"] == ["0 shots: the task takes no solved examples, --shots 2 is not for it"]
    arc = loaded.tasks["arc_easy"]
    assert arc.fewshot_context(arc.eval_docs[0], num_fewshot=2).count("Answer:") == 3


@pytest.mark.parametrize(("names", "shots", "message"), [
    (["arc_eesy"], {}, r"lm-evaluation-harness has no such task \(did you mean arc_easy\?\): 'arc_eesy'"),
    (["arc_easy", "arc_easy"], {}, "a task is asked for twice: 'arc_easy'"),
    (["tinyMMLU"], {"tinyMMLU": 3}, "tinyMMLU takes no solved examples: '--shots tinyMMLU=3'. Allowed: 0"),
    (["arc_easy"], {"arc_esay": 3}, r"--shots names another task \(did you mean arc_easy\?\)"),
    (["arc_easy"], {"arc_easy": 99}, "arc_easy: there are only 6 solved examples: 99. Next: --shots arc_easy=6"),
])  # fmt: skip
def test_wrong_names_and_shots_are_errors(
    data: LocalData, names: list[str], shots: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    index = TaskManager(include_defaults=False, include_path=[_folder("arc"), _folder("tinyBenchmarks")])
    monkeypatch.setattr(harness_tasks, "_manager", lambda _: index)  # the whole index takes seconds
    with pytest.raises(InputError, match=message):
        load_tasks(names, data=data, shots=shots)


def _folder(name: str) -> str:
    import lm_eval.tasks

    return str(Path(lm_eval.tasks.__file__).parent / name)


def test_missing_data_are_named_before_anything_is_scored(data: LocalData) -> None:
    with pytest.raises(DataError, match="tinyArc needs split 'train' .*25 shots.* or --shots tinyArc=0"):
        load_tasks(["tinyArc"], data=data)


def test_tasks_that_run_code_in_their_own_way_are_refused(data: LocalData, tmp_path: Path) -> None:
    task = tmp_path / "own.yaml"
    task.write_text(
        "task: own_code\ndataset_path: openai/openai_humaneval\ntest_split: test\noutput_type: generate_until\n"
        'unsafe_code: true\ndoc_to_text: "{{prompt}}"\ndoc_to_target: "{{test}}"\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    with pytest.raises(EngineError, match="runs generated code in ways of its own: 'own_code'"):
        load_tasks([str(task)], data=data)


def test_a_task_of_ones_own_is_a_yaml_file(data: LocalData, tmp_path: Path) -> None:
    task = tmp_path / "own.yaml"
    task.write_text(
        "task: own\ndataset_path: allenai/ai2_arc\ndataset_name: ARC-Easy\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{choices.text}}"\n'
        'doc_to_target: "{{choices.label.index(answerKey)}}"\n'
    )
    assert list(load_tasks([str(task)], data=data).tasks) == ["own"]


def test_offline_holds_inside_and_is_undone_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with offline():
        assert constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"
    assert not constants.HF_HUB_OFFLINE and "HF_HUB_OFFLINE" not in os.environ
    with offline(False):
        assert not constants.HF_HUB_OFFLINE


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable = harness_tasks.importlib.util.find_spec
    monkeypatch.setattr(
        harness_tasks.importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else real(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r"lm_eval is not installed. Next: pip install 'cairn-lm\[eval\]'"):
        load_tasks(["arc_easy"])
