"""From the rows of a source to the questions that a teacher is asked about, and what is left out before any call.

    rows ── fault? ── limit ── inputs rendered ── seen before? ── text of an evaluation set? ── train or test
              └──────────────────┴─────────────────┴──────────────────┴── Rejection, with the reason
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cairn import prompts
from cairn.data.corpora import iterate
from cairn.data.distill_config import DistillConfig
from cairn.data.examples import StackView
from cairn.data.instructions import ANSWER_FIELD, SourceRow, detect_form, read_source
from cairn.errors import InputError

__all__ = ["Prepared", "Rejection", "Work", "prepare"]


@dataclass(frozen=True)
class Rejection:
    """One row that gives no example.

    Args:
        id: of the row.
        row: its number in the source.
        kind: in one or two words, what reports count.
        detail: what exactly.
        stage: at which it was rejected; None before the first.
        text: the teacher's text, if one was the reason.
    """

    id: str
    row: int
    kind: str
    detail: str
    stage: str | None = None
    text: str | None = None


@dataclass
class Work:
    """One row on its way to an example.

    Args:
        row: where it comes from.
        inputs: of the stack.
        gold: the right answer, if the row has one.
        test: goes to test.jsonl.
        fields: inputs and the hand-offs made so far, as the stack sees them.
        outputs: stage -> what its calls should write, in order.
        origins: stage -> where each of them comes from.
        left: why it goes no further: a Rejection, or a text where there was no answer.
    """

    row: SourceRow
    inputs: dict[str, str]
    gold: str | None
    test: bool = False
    fields: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, list[str]] = field(default_factory=dict)
    origins: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left: Rejection | str | None = None

    @property
    def open(self) -> bool:
        """Whether it goes on."""
        return self.left is None

    def seen(self, call: Mapping[str, str] | None = None) -> dict[str, str]:
        """Returns what a template of the recipe may read: the row, then the gold answer, then the stack's fields."""
        gold = {} if self.gold is None else {"gold": self.gold}
        return {**self.row.fields, **gold, **self.fields, **(call or {})}

    def reject(self, kind: str, detail: str, stage: str | None = None, text: str | None = None) -> None:
        """Takes it out, with the reason."""
        self.left = Rejection(self.row.id, self.row.number, kind, detail, stage, text)


@dataclass
class Prepared:
    """What is to be done.

    Args:
        works: the rows that the teacher is asked about, in their order.
        rejected: the others that have a fault.
        rows: of the source.
        not_drawn: usable rows beyond the limit.
        keep_out: evaluation set -> rows that hold its text.
        overlaps: finds text of the evaluation sets in a text; None without any.
    """

    works: list[Work]
    rejected: list[Rejection]
    rows: int
    not_drawn: int
    keep_out: dict[str, int]
    overlaps: Any = None


def prepare(config: DistillConfig, spec: StackView, root: str | Path) -> Prepared:
    """Reads the source and decides which rows the teacher is asked about.

    Args:
        config: the section `distill:`.
        spec: the stack.
        root: folder that relative paths start from.

    Raises:
        DataError: the source, or an evaluation set that is to be kept out, cannot be read.
        MissingExtraError: an optional package is needed.
    """
    read = list(read_source(config.source, root))
    rejected = [Rejection(row.id, row.number, row.kind, row.fault) for row in read if row.fault is not None]
    usable = [row for row in read if row.fault is None]
    drawn = usable
    if config.source.limit is not None and config.source.limit < len(usable):
        places = random.Random(config.seed).sample(range(len(usable)), config.source.limit)
        drawn = [usable[place] for place in sorted(places)]
    overlaps = _overlaps(config, root)
    first_with: dict[str, str] = {}
    keep_out = {known.name: 0 for known in config.keep_out}
    works: list[Work] = []
    for row in drawn:
        work = _work(config, spec, row)
        if work.open:
            same = first_with.setdefault(_same("\n".join(work.inputs.values())), row.id)
            if same != row.id:
                work.reject("seen before", f"says the same as row {same}")
        if work.open and overlaps is not None:
            found = overlaps("\n".join([*work.inputs.values(), work.gold or ""]))
            for name in dict.fromkeys(name for name, _ in found):
                keep_out[name] += 1
            if found:
                work.reject("evaluation text", f"{found[0][0]}: {found[0][1]}")
        if isinstance(work.left, Rejection):
            rejected.append(work.left)
        else:
            works.append(work)
    order = sorted(works, key=lambda work: hashlib.sha256(f"{config.seed} {work.row.id}".encode()).digest())
    for work in order[: config.test_examples]:
        work.test = True
    return Prepared(works, rejected, len(read), len(usable) - len(drawn), keep_out, overlaps)


def _overlaps(config: DistillConfig, root: str | Path) -> Any:
    if not config.keep_out:
        return None
    from cairn.data.decontaminate import Decontaminator

    known = Decontaminator()
    for source in config.keep_out:
        known.add(source.name, iterate(source, root=root))
    return known.overlaps


def _work(config: DistillConfig, spec: StackView, row: SourceRow) -> Work:
    """Renders the inputs and the gold answer of a row."""
    work = Work(row, {}, None)
    for name in spec.inputs:
        try:
            text = prompts.render(config.inputs.get(name, f"{{{name}}}"), row.fields).strip()
        except InputError as error:
            work.reject("missing field", f"input {name!r}: {error.what} {error.value!r}, it has {_listed(row)}")
            return work
        if not text:
            work.reject("missing field", f"input {name!r} is empty")
            return work
        work.inputs[name] = text
    work.fields = dict(work.inputs)
    form = detect_form(row.fields) if config.source.form == "auto" else config.source.form
    template = config.answer or f"{{{ANSWER_FIELD[form]}}}"
    try:
        work.gold = prompts.render(template, row.fields).strip() or None
    except InputError as error:
        if config.answer is not None:
            work.reject("missing field", f"answer: {error.what} {error.value!r}, it has {_listed(row)}")
    return work


def _listed(row: SourceRow) -> str:
    return ", ".join(row.fields) or "none"


def _same(text: str) -> str:
    """Returns a text without what does not make another question of it: capitals, white space, marks at the end.

    Marks inside count, or 2 + 3 and 2 - 3 would be the same.
    """
    return " ".join(text.casefold().split()).rstrip(".!?:; ")
