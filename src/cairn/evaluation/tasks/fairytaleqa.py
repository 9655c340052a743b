"""FairytaleQA: questions about old tales, answered from the section that holds the answer or from the whole story.

    passage   the gold section, or what a rule picked from the whole story
       ├─ near (rule)   the sentences that share most with the question, one a line
       ├─ find (map)    does this sentence help?  yes or no
       └─ answer        read from the sentences kept; scored by ROUGE-L F1 against both annotators' answers

The context of a tiny model does not hold a story. What every system reads instead is the input `passage`: the section
or sections that the data names, or, with `context: story`, the sections of the whole story that the rule likes best. A
passage longer than `passage_words` is cut down to the sentences that the rule likes best, in their order. The facts say
how often that happened, and how often a gold section is in what was picked.

8,548 questions to train from, 1,025 to validate, 1,007 to test, on 278 stories, none of which is in two splits.
Licence: Apache-2.0.

Source: Xu et al., "Fantastic Questions and Where to Find Them: FairytaleQA" (arXiv 2203.13947).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cairn.config import StrictModel
from cairn.errors import DataError
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.fairytaleqa_rouge import rouge_l, rouge_words
from cairn.evaluation.tasks.fairytaleqa_search import best_sections, helpful, near_sentences, shorten_passage
from cairn.evaluation.tasks.registry import TaskData
from cairn.evaluation.tasks.split_files import file_hashes, find_split, read_split

__all__ = ["TASK", "Fairytaleqa", "FairytaleqaOptions"]

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "story": str, "question": str, "answers": list, "sections": list, "attribute": str, "ex_or_im": str,
}  # fmt: skip


class FairytaleqaOptions(StrictModel):
    """Options of the task `fairytaleqa`.

    Args:
        context: what the passage is: "section", the gold sections, or "story", picked from the whole story by the rule.
        train_context: the same for the training rows, so that what was trained on sections can be asked about stories;
            None is as `context`.
        stages: the hand-offs whose gold the training rows hold.
        passage_words: the longest passage.
        kinds: question types to take; None takes all seven.
        answer_words: leave out training questions whose shortest answer is longer; None takes all. Tests stay whole.
        train_questions, test_questions: at most so many, drawn with `seed`; None takes all.
        test_split: the file to test with; "valid" while a stack is being designed.
        seed: of the draws.
    """

    context: Literal["section", "story"] = "section"
    train_context: Literal["section", "story"] | None = None
    stages: list[Literal["near", "find", "answer"]] = Field(default=["near", "find", "answer"], min_length=1)
    passage_words: int = Field(default=450, ge=20)
    kinds: list[str] | None = None
    answer_words: int | None = Field(default=None, ge=1)
    train_questions: int | None = Field(default=None, ge=1)
    test_questions: int | None = Field(default=None, ge=1)
    test_split: Literal["test", "valid"] = "test"
    seed: int = 0


class Fairytaleqa:
    """Free answers about stories, scored by ROUGE-L F1: the best over the references."""

    name = "fairytaleqa"
    Options = FairytaleqaOptions

    def load(self, folder: Path, options: FairytaleqaOptions) -> TaskData:
        """Reads fairytaleqa_train.jsonl and fairytaleqa_test.jsonl (or valid), for `context: story` the stories too.

        Training questions have one gold answer, the annotators' shortest; test questions have all as references.

        Raises:
            DataError: a file is missing or damaged, or a question's story is not there.
        """
        splits = ("train", options.test_split)
        paths = [find_split(folder, f"fairytaleqa_{split}.jsonl") for split in splits]
        rows = {split: read_split(path, _FIELDS) for split, path in zip(splits, paths, strict=True)}
        stories: dict[str, list[str]] = {}
        contexts = {"train": options.train_context or options.context, options.test_split: options.context}
        whole = [split for split in splits if contexts[split] == "story"]
        if whole:
            more = [find_split(folder, f"fairytaleqa_stories_{split}.jsonl") for split in whole]
            for path in more:
                stories |= {row["story"]: row["sections"] for row in read_split(path, {"story": str, "sections": list})}
            paths += more
        draw = random.Random(options.seed)
        left_out = {"no answer": 0, "another question type": 0, "answer too long": 0}
        made: dict[str, list[dict[str, Any]]] = {}
        seen: dict[str, dict[str, int]] = {}
        for split in splits:
            kept = [(n, row) for n, row in enumerate(rows[split], 1) if self._wanted(row, split, options, left_out)]
            count = options.train_questions if split == "train" else options.test_questions
            if count is not None and count < len(kept):
                kept = [kept[place] for place in sorted(draw.sample(range(len(kept)), count))]
            picks = stories if split in whole else None
            seen[split] = {"questions": 0, "shortened": 0} | ({} if picks is None else {"gold section picked": 0})
            made[split] = [_row(row, f"{split}-{number}", options, picks, seen[split]) for number, row in kept]
        test = [_question(row) for row in made[options.test_split]]
        facts = {
            "files": file_hashes(paths),
            "licence": "Apache-2.0",
            "counts": {"train": len(made["train"]), "test": len(test)},
            "passages": seen,
            "left_out": left_out,
        }
        return TaskData([{k: v for k, v in row.items() if k != "references"} for row in made["train"]], test, facts)

    def _wanted(
        self, row: Mapping[str, Any], split: str, options: FairytaleqaOptions, left_out: dict[str, int]
    ) -> bool:
        if not _answers(row):
            left_out["no answer"] += 1
        elif options.kinds is not None and row["attribute"] not in options.kinds:
            left_out["another question type"] += 1
        elif split == "train" and options.answer_words and _words(_answers(row)[0]) > options.answer_words:
            left_out["answer too long"] += 1
        else:
            return True
        return False

    def score(self, answer: str, question: Question) -> float:
        """Returns the F1 of ROUGE-L, the best over the references (see `fairytaleqa_rouge`)."""
        return rouge_l(answer, (question.answer, *question.references))

    def measures(self, answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
        """Returns ROUGE-L of explicit and implicit questions, and of the rule that answers with its best sentence."""
        found: dict[str, float] = {}
        scores = [self.score(answer, question) for answer, question in zip(answers, questions, strict=True)]
        for kind in ("explicit", "implicit"):
            of_kind = [s for s, question in zip(scores, questions, strict=True) if question.id.endswith(kind)]
            if of_kind:
                found[f"rouge_l_{kind}"] = sum(of_kind) / len(of_kind)
        rule = [
            self.score(near_sentences(question.inputs["passage"], question.inputs["question"], 1)[0], question)
            for question in questions
        ]
        found["rouge_l_of_the_rule"] = sum(rule) / max(len(rule), 1)
        return found

    def groups(self, question: Question) -> str:
        """Returns the question's type, as the data names it, such as "causal relationship"."""
        return question.task


TASK = Fairytaleqa()


def _answers(row: Mapping[str, Any]) -> list[str]:
    """Returns the distinct answers with a word in them, the shortest first."""
    texts = dict.fromkeys(" ".join(text.split()) for text in row["answers"] if isinstance(text, str))
    return sorted((text for text in texts if rouge_words(text)), key=_words)


def _words(text: str) -> int:
    return len(text.split())


def _row(
    row: Mapping[str, Any],
    name: str,
    options: FairytaleqaOptions,
    stories: Mapping[str, Sequence[str]] | None,
    seen: dict[str, int],
) -> dict[str, Any]:
    """Returns an example; its passage is picked from the whole story where `stories` are given."""
    question, answers = " ".join(row["question"].split()), _answers(row)
    if stories is not None:
        if row["story"] not in stories:
            raise DataError("a question's story is not in the file of stories", value=row["story"])
        sections = stories[row["story"]]
        picked = best_sections(sections, question, options.passage_words)
        seen["gold section picked"] += any(section in picked for section in row["sections"])
    else:
        picked = list(row["sections"])
    passage = " ".join(" ".join(picked).split())
    short = shorten_passage(passage, question, options.passage_words)
    seen["questions"] += 1
    seen["shortened"] += short != passage
    near = near_sentences(short, question)
    gold = {
        "near": "\n".join(near),
        "find": ["yes" if helps else "no" for helps in helpful(near, question, answers)],
        "answer": answers[0],
    }
    return {
        "id": f"{name}-{row['ex_or_im']}",
        "inputs": {"passage": short, "question": question},
        "stages": {stage: gold[stage] for stage in options.stages},
        "answer": answers[0],
        "task": row["attribute"],
        "group": row["story"],
        "references": answers[1:],
    }


def _question(row: Mapping[str, Any]) -> Question:
    gold = {stage: tuple(value) if isinstance(value, list) else value for stage, value in row["stages"].items()}
    return Question(row["id"], row["group"], row["task"], row["inputs"], row["answer"], tuple(row["references"]), gold)
