"""`cairn report`: the page and the tables of a comparison that is done, once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of cairn compare or cairn demo.")],
    traces: Annotated[int | None, typer.Option(min=1, help="Questions on the page; default as the run says.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json, and nothing else, on stdout.")] = False,
) -> None:
    """Write the page of a comparison again, and print its tables.

    Everything comes from the run folder: result.json, traces.jsonl, the curves of the training, and the table of
    `cairn ablate` if it was run since. RUN/report.html opens offline and can be sent to anybody as it is.

    Examples:

      cairn report runs/snips
      cairn report runs/demo --traces 1000
    """
    from cairn.verbs.comparison.comparison_files import print_result, write_page_again

    result = write_page_again(run, traces)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print_result(run, result)
