"""What a distillation leaves behind: the examples, where each comes from, and a report of what was kept and why not.

    OUT/
      train.jsonl, test.jsonl   examples, as `cairn finetune` reads them
      provenance.jsonl          a line per example: source, licence, and for every hand-off who made it and how
      rejected.jsonl            a line per row that gave none: the stage, the reason, the text
      answers.jsonl             every answer of the teacher: goes on from it, and replays offline
      report.json               the figures below
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cairn.data.distill import Distiller
from cairn.data.distill_answers import Answers, json_line
from cairn.data.distill_config import DistillConfig
from cairn.data.distill_rows import Prepared, Rejection
from cairn.files import write_json, write_text

__all__ = ["coverage", "coverage_text", "write_examples"]

_SHOWN = 3  # examples of each kind in the report
_CUT = 400  # characters of a text that is shown


def coverage(
    config: DistillConfig, prepared: Prepared, made: Distiller, answers: Answers, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the report.

    Args:
        config: the section `distill:`.
        prepared: what was to be done.
        made: what was done.
        answers: of this run.
        facts: put in as they are (teacher, whether token counts are estimates).
    """
    rejected = _rejections(prepared, made)
    open_works = [work for work in made.works if isinstance(work.left, str)]
    failed = [work for work in open_works if work.left != "not asked yet"]
    kept = [example.row for example in made.examples]
    stages = {
        name: {**asdict(count), "rejected": dict(count.rejected), **_texts(kept, name)}
        for name, count in made.counts.items()
    }
    kinds = Counter(one.kind for one in rejected)
    return {
        "complete": not open_works,
        "stopped": None if made.stopped is None else str(made.stopped),
        "source": config.source.model_dump(mode="json"),
        **facts,
        "rows": prepared.rows,
        "not_drawn": prepared.not_drawn,
        "kept": len(kept),
        "test": sum(example.test for example in made.examples),
        "rejected": {
            kind: {"rows": count, "examples": [_shown(one) for one in rejected if one.kind == kind][:_SHOWN]}
            for kind, count in kinds.most_common()
        },
        "unanswered": {
            "rows": len(open_works),
            "failed": len(failed),
            "examples": [{"id": work.row.id, "why": work.left} for work in failed[:_SHOWN]],
        },
        "evaluation_sets": {name: {"rows_with_its_text": count} for name, count in prepared.keep_out.items()},
        "stages": stages,
        "answers": {"calls": answers.calls, "tokens": answers.tokens},
        "examples": kept[:_SHOWN],
    }


def _rejections(prepared: Prepared, made: Distiller) -> list[Rejection]:
    late = [work.left for work in made.works if isinstance(work.left, Rejection)]
    return sorted([*prepared.rejected, *late], key=lambda one: one.row)


def _shown(one: Rejection) -> dict[str, Any]:
    row = asdict(one)
    return {key: _cut(value) if isinstance(value, str) else value for key, value in row.items() if value is not None}


def _cut(text: str) -> str:
    text = text.encode("utf-8", errors="backslashreplace").decode()
    return text if len(text) <= _CUT else text[: _CUT - 3] + "..."


def _texts(rows: Sequence[Mapping[str, Any]], stage: str) -> dict[str, Any]:
    """Returns lengths, the share of distinct texts, and a few texts of one stage in what was kept."""
    values = [row["stages"][stage] for row in rows if stage in row["stages"]]
    texts = [text for value in values for text in ([value] if isinstance(value, str) else value)]
    if not texts:
        return {"texts": 0}
    words = sorted(len(text.split()) for text in texts)
    common = Counter(texts).most_common(_SHOWN)
    return {
        "texts": len(texts),
        "distinct": len(set(texts)),
        "words": {
            "mean": sum(words) / len(words), "p50": words[len(words) // 2],
            "p95": words[min(len(words) - 1, int(len(words) * 0.95))], "most": words[-1],
        },
        "characters_most": max(map(len, texts)),
        "commonest": [{"text": _cut(text), "count": count} for text, count in common],
    }  # fmt: skip


def write_examples(out: Path, prepared: Prepared, made: Distiller, report: Mapping[str, Any]) -> list[str]:
    """Writes examples, provenance, rejections and report, each file whole or not at all; returns their names.

    Raises:
        StorageError: the disk is full or the folder may not be written.
    """
    splits = {
        "train.jsonl": [example.row for example in made.examples if not example.test],
        "test.jsonl": [example.row for example in made.examples if example.test],
    }
    files = {name: rows for name, rows in splits.items() if rows}
    files["provenance.jsonl"] = [example.provenance for example in made.examples]
    files["rejected.jsonl"] = [asdict(one) for one in _rejections(prepared, made)]
    for name, rows in files.items():
        write_text(out / name, "".join(json_line(row) for row in rows))
    write_json(out / "report.json", dict(report))
    return [*files, "report.json"]


def coverage_text(report: Mapping[str, Any]) -> str:
    """Returns the report for a terminal."""
    kept, test = report["kept"], report["test"]
    lines = [f"{report['rows']:,} rows: {kept:,} examples" + (f", {test:,} of them for testing" if test else "")]
    if report["not_drawn"]:
        lines.append(f"  {report['not_drawn']:,} rows beyond the limit were not drawn")
    for kind, one in report["rejected"].items():
        first = one["examples"][0]
        where = f" at {first['stage']}" if "stage" in first else ""
        lines.append(f"  {one['rows']:,} rejected, {kind}: row {first['row']}{where}: {_line(first['detail'])}")
    left = report["unanswered"]
    if left["rows"]:
        why = f", {left['failed']:,} of them because the teacher failed" if left["failed"] else ""
        lines.append(f"  {left['rows']:,} not answered yet{why}")
        lines += [f"    {one['id']}: {_line(one['why'])}" for one in left["examples"][:1]]
    for name, one in report["evaluation_sets"].items():
        lines.append(f"  {one['rows_with_its_text']:,} rows hold text of {name}, kept out")
    lines.append("stage            accepted   asked again   rejected   words p50/p95/most   distinct texts")
    for name, one in report["stages"].items():
        words = one.get("words")
        length = f"{words['p50']}/{words['p95']}/{words['most']}" if words else "-"
        distinct = f"{one['distinct']:,} of {one['texts']:,}" if words else "-"
        gone = sum(one["rejected"].values())
        lines.append(f"{name:<16} {one['accepted']:>8,} {one['again']:>13,} {gone:>10,} {length:>20} {distinct:>16}")
    used = report["answers"]
    about = "about " if report.get("tokens_estimated") else ""
    lines.append(f"teacher {report['teacher']}: {used['calls']:,} answers, {about}{used['tokens']:,} tokens, all runs")
    return "\n".join(lines)


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:97] + "..."
