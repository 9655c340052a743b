"""Which local file holds which benchmark, and how its rows become rows as the hub has them.

    "allenai/winogrande", "winogrande_xl", "validation" ── KNOWN ──> Source: file name, fields, adapter, notes

Adapters change the shape of a row and never its text. A row that is in the hub's schema passes unchanged. Where
something of the original is lost, a note says so, and stands in the result.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cairn.errors import DataError

__all__ = ["KNOWN", "Source"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One split of one dataset.

    Args:
        file: name without suffix.
        needs: fields of a row as the hub has it.
        keep: rows that belong here; gets the row and the dataset's configuration.
        adapt: turns a row of another schema into the hub's; gets the row and the folder (`harness_data.LocalData`).
        note: what a reader of the result must know of this file.
        adapted: the same, where rows were not in the hub's schema.
    """

    file: str
    needs: tuple[str, ...]
    keep: Callable[[Row, str], bool] = lambda row, name: True
    adapt: Callable[[Row, Any], Row] = lambda row, data: row
    note: str = ""
    adapted: str = ""


def _options(row: Row, texts: list[str], gold: int) -> Row:
    """Returns the choices as ARC and OpenBookQA have them: texts, labels, and the right label."""
    labels = [chr(ord("A") + number) for number in range(len(texts))]
    return {**row, "choices": {"text": texts, "label": labels}, "answerKey": labels[gold]}


def _arc(row: Row, data: Any) -> Row:
    if isinstance(row["choices"], dict):
        return row
    return _options(row, row["choices"], row["answer"])


def _openbookqa(row: Row, data: Any) -> Row:
    return row if "question_stem" in row else _options({"question_stem": row["query"]}, row["choices"], row["gold"])


def _boolq(row: Row, data: Any) -> Row:
    if "passage" in row:
        return row
    passage, mark, question = row["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    if not mark:
        raise ValueError("no line 'Question: ...'")
    yes = row["choices"][row["gold"]] == "yes"
    return {"passage": passage, "question": question.removesuffix("?"), "label": int(yes)}


def _winogrande(row: Row, data: Any) -> Row:
    if "sentence" in row:
        return row
    first, second = row["context_options"]
    same = os.path.commonprefix([first, second])
    start = same.rfind(" ") + 1  # both options begin with a whole word
    if "_" in same or not (first[start:] and second[start:]):
        raise ValueError("no gap can be put between context and continuation")
    sentence = f"{same[:start]}_ {row['continuation'].strip()}"
    return {"sentence": sentence, "option1": first[start:], "option2": second[start:], "answer": str(row["gold"] + 1)}


def _hellaswag(row: Row, data: Any) -> Row:
    if "ctx_a" in row:
        return {**row, "label": str(row["label"])}
    if "ctx" not in row:  # an item of the tiny subset: "Activity: context"
        label, _, context = row["question"].partition(": ")
        row = {**row, "activity_label": label, "ctx": context, "endings": row["choices"], "label": row["answer"]}
    opened = re.fullmatch(r"(.*[.!?]\S*) ([a-z][^.!?]*)", row["ctx"], re.DOTALL)
    context, begun = opened.groups() if opened else (row["ctx"], "")
    kept = {name: row[name] for name in ("ind", "index", "activity_label", "endings") if name in row}
    return {**kept, "ctx_a": context, "ctx_b": begun, "ctx": row["ctx"], "label": str(row["label"])}


def _mmlu_prompt(row: Row, data: Any) -> Row:
    """Writes the field `input_formatted` of tinyMMLU: five solved questions of the subject, and the open one."""
    if "input_formatted" in row:
        return row
    solved = data.file("mmlu_dev")
    if solved is None:
        raise DataError("tinyMMLU needs the solved examples of MMLU", value=str(data.folder), allowed="mmlu_dev.jsonl")
    subject = row["subject"].replace("_", " ")
    shots = [one for one in data.rows(solved) if one["subject"] == row["subject"]][:5]
    parts = [_mmlu_question(one) + f" {'ABCD'[one['answer']]}" for one in shots]
    head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return {**row, "input_formatted": head + "\n\n".join([*parts, _mmlu_question(row)])}


def _mmlu_question(row: Row) -> str:
    options = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True))
    return f"{row['question'].strip()}\n{options}\nAnswer:"


def _of(scenario: str) -> Callable[[Row, str], bool]:
    return lambda row, name: row.get("scenario", scenario) == scenario


_ANCHORS = "tinybenchmarks_anchor_items"
_NOT_VERIFIED = "items from the authors' tutorial anchors: not verified to equal the published subset"
_JOINED = "file without ctx_a and ctx_b: the last sentence, only begun, was taken for ctx_b, which is capitalised"
_NO_TITLE = "the file may lack the titles that the hub's passages begin with"
_REBUILT = "the five solved questions of input_formatted were put together from mmlu_dev"
_ARC = ("question", "choices", "answerKey")
_MMLU = ("question", "subject", "choices", "answer")
_HELLASWAG = ("ctx_a", "ctx_b", "activity_label", "endings", "label")
_WINOGRANDE = ("sentence", "option1", "option2", "answer")
_GSM8K = ("question", "answer")
_BOOLQ = ("passage", "question", "label")
_OPENBOOKQA = ("question_stem", "choices", "answerKey")


def _table() -> dict[str, dict[tuple[str, str], Source]]:
    """Returns dataset -> (configuration, split) -> source; configuration "*" is any."""
    splits = ("train", "validation", "test")
    arc = {
        (name, split): Source(f"{stem}_{split}", _ARC, adapt=_arc)
        for name, stem in (("ARC-Easy", "arc_easy"), ("ARC-Challenge", "arc_challenge"))
        for split in splits
    }
    mmlu = {
        ("*", split): Source(f"mmlu_{short}", _MMLU, keep=lambda row, name: name in ("all", row.get("subject")))
        for split, short in (("test", "test"), ("dev", "dev"), ("validation", "val"))
    }
    hellaswag_train = Source("hellaswag_train", _HELLASWAG, adapt=_hellaswag, adapted=_JOINED)
    winogrande_train = Source("winogrande_train", _WINOGRANDE, adapt=_winogrande)
    gsm8k = {("main", split): Source(f"gsm8k_{split}", _GSM8K) for split in ("train", "test")}
    tiny_arc = Source(_ANCHORS, _ARC, _of("arc"), _arc, _NOT_VERIFIED)
    tiny_mmlu = Source(
        _ANCHORS, (*_MMLU, "input_formatted"), _of("mmlu"), _mmlu_prompt, _NOT_VERIFIED, _REBUILT
    )
    tiny_hellaswag = Source(_ANCHORS, _HELLASWAG, _of("hellaswag"), _hellaswag, _NOT_VERIFIED, _JOINED)
    tiny_winogrande = Source(_ANCHORS, _WINOGRANDE, _of("winogrande"), _winogrande, _NOT_VERIFIED)
    tiny_gsm8k = Source(_ANCHORS, _GSM8K, _of("gsm8k"), note=_NOT_VERIFIED)
    return {
        "allenai/ai2_arc": arc,
        "cais/mmlu": mmlu,
        "Rowan/hellaswag": {
            ("", "train"): hellaswag_train,
            ("", "validation"): Source("hellaswag_validation", _HELLASWAG, adapt=_hellaswag, adapted=_JOINED),
        },
        "allenai/winogrande": {
            ("winogrande_xl", "train"): winogrande_train,
            ("winogrande_xl", "validation"): Source("winogrande", _WINOGRANDE, adapt=_winogrande),
        },
        "nyu-mll/blimp": {
            ("*", "train"): Source(
                "blimp", ("sentence_good", "sentence_bad"), keep=lambda row, name: row.get("UID") == name
            )
        },
        "allenai/openbookqa": {
            ("main", "train"): Source("openbook_qa_train", _OPENBOOKQA, adapt=_openbookqa),
            ("main", "validation"): Source("openbook_qa_validation", _OPENBOOKQA, adapt=_openbookqa),
            ("main", "test"): Source("openbook_qa", _OPENBOOKQA, adapt=_openbookqa),
        },
        "aps/super_glue": {
            ("boolq", "train"): Source("boolq_train", _BOOLQ, adapt=_boolq, adapted=_NO_TITLE),
            ("boolq", "validation"): Source("boolq", _BOOLQ, adapt=_boolq, adapted=_NO_TITLE),
        },
        "openai/gsm8k": gsm8k,
        "openai/openai_humaneval": {
            ("", "test"): Source("humaneval", ("task_id", "prompt", "entry_point", "test")),
        },
        "mandarjoshi/trivia_qa": {
            ("rc.nocontext", split): Source(f"triviaqa_{split}", ("question", "answer"))
            for split in ("train", "validation")
        },
        "google-research-datasets/nq_open": {
            ("", split): Source(f"nq_open_{split}", ("question", "answer")) for split in ("train", "validation")
        },
        "tinyBenchmarks/tinyAI2_arc": {
            **{("ARC-Challenge", split): arc["ARC-Challenge", split] for split in ("train", "validation")},
            ("ARC-Challenge", "test"): tiny_arc,
        },
        "tinyBenchmarks/tinyMMLU": {("all", "test"): tiny_mmlu, ("all", "dev"): mmlu["*", "dev"]},
        "tinyBenchmarks/tinyHellaswag": {("", "train"): hellaswag_train, ("", "validation"): tiny_hellaswag},
        "tinyBenchmarks/tinyWinogrande": {
            ("winogrande_xl", "train"): winogrande_train, ("winogrande_xl", "validation"): tiny_winogrande,
        },
        "tinyBenchmarks/tinyGSM8k": {("main", "train"): gsm8k["main", "train"], ("main", "test"): tiny_gsm8k},
    }  # fmt: skip


KNOWN = _table()
