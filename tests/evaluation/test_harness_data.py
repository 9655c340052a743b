"""Local files for the harness: the hub's schema, other schemas, missing files and splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cairn.errors import DataError
from cairn.evaluation.harness_data import LocalData, Splits
from tests.evaluation.harness_files import FILES, write_files

CASES = [  # dataset, configuration, split, rows that the harness gets (the fields it reads)
    ("allenai/ai2_arc", "ARC-Easy", "test", FILES["arc_easy_test"]),
    ("nyu-mll/blimp", "passive_1", "train", [row for row in FILES["blimp"] if row["UID"] == "passive_1"]),
    ("cais/mmlu", "virology", "test", [FILES["mmlu_test"][-1]]),
    ("openai/gsm8k", "main", "train", FILES["gsm8k_train"]),
    ("openai/openai_humaneval", None, "test", FILES["humaneval"]),
    ("mandarjoshi/trivia_qa", "rc.nocontext", "validation", FILES["triviaqa_validation"]),
    ("google-research-datasets/nq_open", None, "validation", FILES["nq_open_validation"]),
    ("allenai/openbookqa", "main", "test", [{
        "question_stem": "Milk is", "answerKey": "A",
        "choices": {"text": ["white", "green", "loud", "a river"], "label": ["A", "B", "C", "D"]},
    }]),
    ("aps/super_glue", "boolq", "validation", [
        {"passage": "Milk is white.", "question": "is milk white", "label": 1},
        {"passage": "A river.\nQuestion: is", "question": "it dry", "label": 0},
    ]),
    ("allenai/winogrande", "winogrande_xl", "validation", [
        {"sentence": "John gave Mary milk because _ was thirsty.", "option1": "John", "option2": "Mary", "answer": "2"},
        {"sentence": "She chose the black car, because the _ was new.", "option1": "black car", "option2": "green car",
         "answer": "1"},
    ]),
    ("Rowan/hellaswag", None, "validation", [
        {"ctx_a": f"A man [step] takes the {word}.", "ctx_b": "he", "activity_label": "Milk", "label": str(n),
         "endings": FILES["hellaswag_validation"][0]["endings"]}
        for n, word in enumerate(["kitchen", "garden", "milk", "apple"])
    ]),
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LocalData:
    return LocalData(write_files(tmp_path_factory.mktemp("data")))


@pytest.mark.parametrize(("dataset", "name", "split", "rows"), CASES, ids=[case[0] for case in CASES])
def test_rows_reach_the_harness_in_the_hubs_schema(
    data: LocalData, dataset: str, name: str | None, split: str, rows: list[dict[str, Any]]
) -> None:
    splits = Splits(data, "task", dataset, name, split, 0)
    found = list(splits[split])
    assert len(found) == len(rows)
    for got, wanted in zip(found, rows, strict=True):
        assert {key: got[key] for key in wanted} == wanted
    assert splits.files[split].parent == data.folder and splits[split] is splits[split]
    adapted = "aps" in dataset or "hellaswag" in dataset
    assert bool(splits.notes) == adapted


def test_rows_in_the_hubs_own_schema_pass_unchanged(tmp_path: Path) -> None:
    rows = {
        "aps__super_glue/boolq/validation": {"passage": "P", "question": "q", "label": 1, "idx": 0},
        "allenai__winogrande/winogrande_xl/validation": {
            "sentence": "A _ b.", "option1": "x", "option2": "y", "answer": "1",
        },
        "Rowan__hellaswag/default/validation": {
            "ctx_a": "A.", "ctx_b": "", "ctx": "A.", "activity_label": "L", "endings": ["a", "b"], "label": "0",
        },
        "org__new/default/test": {"anything": "goes"},
    }  # fmt: skip
    for place, row in rows.items():
        path = tmp_path / f"{place}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(row) + "\n")
    data = LocalData(tmp_path)
    for place, row in rows.items():
        dataset, name, split = place.split("/")
        splits = Splits(data, "t", dataset.replace("__", "/"), None if name == "default" else name, split, 0)
        assert list(splits[split]) == [row] and splits.notes == []


def test_parquet_is_read(tmp_path: Path) -> None:
    from datasets import Dataset

    (tmp_path / "org__set" / "default").mkdir(parents=True)
    Dataset.from_list([{"text": "Milk"}, {"text": "Bread"}]).to_parquet(tmp_path / "org__set/default/test.parquet")
    assert Splits(LocalData(tmp_path), "t", "org/set", None, "test", 0)["test"]["text"][:] == ["Milk", "Bread"]


def test_the_items_of_the_tiny_sets_are_marked_as_not_verified(data: LocalData) -> None:
    arc = Splits(data, "tinyArc", "tinyBenchmarks/tinyAI2_arc", "ARC-Challenge", "test", 0)
    assert len(arc["test"]) == 100 and arc["test"][1]["choices"]["label"] == ["A", "B", "C", "D"]
    assert "not verified to equal the published subset" in arc.notes[0]
    mmlu = Splits(data, "tinyMMLU", "tinyBenchmarks/tinyMMLU", "all", "test", 0)
    prompt = mmlu["test"][0]["input_formatted"]
    assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.\n\nQuestion 0")
    assert prompt.count("\nAnswer:") == 6 and prompt.endswith("\nAnswer:") and "\nAnswer: B\n\nQuestion 2" in prompt
    assert len(mmlu.notes) == 2


def test_splits_that_no_shot_needs_may_be_missing(data: LocalData) -> None:
    assert len(Splits(data, "arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test", 0)["train"]) == 0
    with pytest.raises(DataError) as error:
        Splits(data, "arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test", 5)["train"]
    assert str(error.value) == (
        "arc_challenge needs split 'train' of allenai/ai2_arc, solved examples (5 shots), and it is not in "
        f"{data.folder}: 'ARC-Challenge'. Allowed: arc_challenge_train.jsonl or allenai__ai2_arc/ARC-Challenge/"
        "train.jsonl (rows as the hub has them), also as .xz, .gz, .zst or .parquet. Next: put the file there, or "
        "--shots arc_challenge=0"
    )


def test_a_missing_evaluation_split_is_an_error_even_without_shots(data: LocalData) -> None:
    with pytest.raises(DataError, match="needs split 'test' of org/unknown, the split that is scored"):
        Splits(data, "new_task", "org/unknown", None, "test", 0)["test"]
    with pytest.raises(DataError, match=r"mmlu_test.jsonl.* has no rows for mmlu_x: 'astronomy'"):
        Splits(data, "mmlu_x", "cais/mmlu", "astronomy", "test", 0)["test"]
    with pytest.raises(DataError, match="no such data folder"):
        LocalData(data.folder / "none")


@pytest.mark.parametrize(("file", "row", "place", "message"), [
    ("arc_easy_test", {"question": "Q", "choices": {"text": [], "label": []}}, ("allenai/ai2_arc", "ARC-Easy", "test"),
     "row 1: it lacks answerKey"),
    ("winogrande", {"context_options": ["a_b c", "a_b d"], "continuation": "e", "gold": 0},
     ("allenai/winogrande", "winogrande_xl", "validation"), "row 1: not as expected .*no gap"),
    ("boolq", {"query": "Passage: P", "choices": ["no", "yes"], "gold": 1}, ("aps/super_glue", "boolq", "validation"),
     "row 1: not as expected .*no line 'Question"),
    ("openbook_qa", {"query": "Q", "choices": ["a"], "gold": 3}, ("allenai/openbookqa", "main", "test"),
     "row 1: not as expected .*IndexError"),
])  # fmt: skip
def test_rows_with_faults_are_named(
    tmp_path: Path, file: str, row: dict[str, Any], place: tuple[str, str, str], message: str
) -> None:
    (tmp_path / f"{file}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        Splits(LocalData(tmp_path), "t", *place, 0)[place[2]]
