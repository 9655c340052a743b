"""The command line: verbs, one-line errors and exit codes.

    argv ──> which verb? ──> import cairn.verbs.VERB (that one only) ──> its function ──> exit code
                  └─ --help: the table below, nothing imported

A verb is a function of its own name in `verbs/`, with typer annotations; its docstring is its manual. An indented
paragraph of it keeps its lines, so that examples can be copied.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from cairn import __version__
from cairn.errors import CairnError, did_you_mean, storage_error

__all__ = ["VERBS", "main", "verb_function"]

# verb -> (module, function, one line for `cairn --help`); the manual is the function's docstring
VERBS: dict[str, tuple[str, str, str]] = {
    "demo": ("cairn.verbs.demo", "demo", "See it all: fine-tune a stack, watch it answer, compare it."),
    "run": ("cairn.verbs.run", "run", "Ask a stack, and see each hand-off between its stages."),
    "init": ("cairn.verbs.init", "init", "Start a stack of your own, from samples or your data."),
    "distill": ("cairn.verbs.distill", "distill", "Make stage examples: a teacher writes the hand-offs."),
    "finetune": ("cairn.verbs.finetune", "finetune", "Train a stack's adapters, and those it is compared to."),
    "compare": ("cairn.verbs.compare", "compare", "Is the stack worth it? Against fair comparators."),
    "ablate": ("cairn.verbs.ablate", "ablate", "Change one thing at a time: what was it worth?"),
    "blame": ("cairn.verbs.blame", "blame", "Name the stage of a stack that loses the points."),
    "report": ("cairn.verbs.report", "report", "Write the page of a comparison again, and print its tables."),
    "eval": ("cairn.verbs.evaluate", "evaluate", "Score a stack or a model: tasks, or bits per byte."),
    "exits": ("cairn.verbs.exits", "exits", "Early exit: speed and bits per byte against the threshold."),
    "pretrain": ("cairn.verbs.pretrain", "pretrain", "Train a tiny base model from raw text."),
    "tune": ("cairn.verbs.tune", "tune", "Tune a base on instructions, and talk to it."),
    "sweep": ("cairn.verbs.sweep", "sweep", "Which ideas pay? Variants of a pretraining, one thing equal."),
    "selfplay": ("cairn.verbs.selfplay", "selfplay", "A model plays games with itself, and learns from the winner."),
    "info": ("cairn.verbs.info", "info", "Show what a preset, model, stack or data folder holds."),
}

_EPILOG = """\b
Exit codes: 0 done, 1 unexpected error, 2 wrong command, recipe or input,
  3 data or files that cannot be trusted, 4 the engine cannot do it,
  5 no space or no permission, 6 an optional package is missing,
  130 interrupted, 141 the reader of the output has gone.
CAIRN_DEBUG=1, or --debug before the verb, shows the whole traceback of an error."""

_INTERRUPTED = "interrupted; run the same command again to go on"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    Args:
        arguments: the command line without the program name; default sys.argv[1:].
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # Read by the OpenMP library when torch is imported. By default its threads spin while they wait for each other:
    # beside any other busy process, training on 2 cores then ran at a sixth of its speed (docs/log.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Read by oneDNN. It keeps one compiled kernel per shape, 1,024 by default, and batches of tiny models have ever new
    # shapes: 64 trained as fast, in 0.6 GB less.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    debug = os.environ.get("CAIRN_DEBUG", "") not in ("", "0") or "--debug" in arguments[:1]
    try:
        app = _app(_verb_in(arguments))
        code = typer.main.get_command(app).main(arguments, prog_name="cairn", standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:  # typer turns a broken pipe into SystemExit
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # The reader (head, less) has gone. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        return 141
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        line, code = _explain(error)
        print(f"cairn: error: {line}", file=sys.stderr)
    if code == 130:  # typer turns a KeyboardInterrupt inside a verb into this exit code
        print(f"cairn: {_INTERRUPTED}", file=sys.stderr)
    return code if isinstance(code, int) else 0


def verb_function(verb: str) -> Callable[..., Any]:
    """Imports the module of a verb and returns its function."""
    module, function, _ = VERBS[verb]
    return getattr(importlib.import_module(module), function)


def _verb_in(arguments: Sequence[str]) -> str | None:
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def _app(wanted: str | None) -> typer.Typer:
    """Builds the typer app in which only the wanted verb is real; the others are their line of help."""
    if wanted is not None and wanted not in VERBS:
        raise CairnUsageError(f"no such verb{did_you_mean(wanted, VERBS)}", wanted)
    app = typer.Typer(
        add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG,
    )  # fmt: skip

    @app.callback()
    def cairn(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
        ] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    ) -> None:
        """Super tiny language models, stacked so that they answer together, and measured honestly.

        Start with `cairn demo`; each verb's --help is its manual.
        """

    for verb, (_, _, line) in VERBS.items():
        if verb == wanted:
            function = verb_function(verb)
            app.command(verb, short_help=line, help=_manual(inspect.getdoc(function) or line))(function)
        else:
            app.command(verb, short_help=line)(_placeholder)
    return app


def _placeholder() -> None:
    """Stands for a verb that this command does not call; never run."""


def _manual(docstring: str) -> str:
    """Marks paragraphs with an indented line (examples, tables), which keep their line breaks."""
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(f"\b\n{text}" if "\n " in f"\n{text}" else text for text in paragraphs)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cairn {__version__}")
        raise typer.Exit()


class CairnUsageError(CairnError):
    """The command line names a verb that does not exist."""

    exit_code = 2

    def __init__(self, what: str, value: str) -> None:
        super().__init__(what, value=value, allowed=", ".join(VERBS), next="cairn --help")


def _explain(error: Exception) -> tuple[str, int]:
    """Returns the line to print for an error, and the exit code."""
    if isinstance(error, CairnError):
        return str(error), error.exit_code
    if isinstance(error, typer.TyperException):  # a wrong option or argument
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "cairn"
        return f"{error.format_message().rstrip('.')}. Next: {path} --help", error.exit_code
    if isinstance(error, OSError):
        known = storage_error(error, error.filename or "standard output")
        return str(known), known.exit_code
    text = " ".join(str(error).split())
    shown = text if len(text) <= 300 else text[:297] + "..."
    name = type(error).__name__
    return f"unexpected {name}: {shown}. Next: CAIRN_DEBUG=1 shows where; please report it with that text", 1
