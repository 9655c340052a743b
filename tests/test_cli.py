"""The command line answers fast, in one line when something is wrong, with the exit code that it documents."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable

import pytest
import typer

from cairn import __version__, cli
from cairn.errors import ConfigError, EngineError, MissingExtraError, ShardError

HEAVY = ("torch", "transformers", "peft", "numpy", "datasets", "lm_eval", "pydantic")


def test_help_lists_every_verb_and_the_exit_codes(cairn: Callable) -> None:
    done = cairn("--help")
    assert done.returncode == 0 and done.stderr == ""
    for verb, (_, _, line) in cli.VERBS.items():
        assert f"  {verb} " in done.stdout and line in done.stdout
    assert "130 interrupted" in done.stdout
    assert cairn().stdout == done.stdout


def test_help_imports_nothing_heavy_and_is_fast(python: Callable) -> None:
    code = (
        "import sys; from cairn.cli import main; code = main(['--help'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "[] 0"
    before = os.times()
    python("-m", "cairn", "--help")
    after = os.times()  # processor seconds of the child: a busy machine does not count
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5


@pytest.mark.parametrize("verb", cli.VERBS)
def test_manual_of_each_verb_has_an_example_and_needs_no_torch(verb: str, python: Callable) -> None:
    code = (
        f"import sys; from cairn.cli import main; code = main([{verb!r}, '--help'])\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'lm_eval') if name in sys.modules], code)"
    )
    done = python("-c", code)
    assert done.stdout.splitlines()[-1:] == ["[] 0"], done.stderr
    assert re.search(rf"^ +cairn {verb}( |$)", done.stdout, re.MULTILINE), "no example on a line of its own"
    assert cli.verb_function(verb).__name__ == cli.VERBS[verb][1]


def test_version(cairn: Callable) -> None:
    assert cairn("--version").stdout == f"cairn {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rnu"], "no such verb (did you mean run?): 'rnu'. Allowed: demo, run, init, distill, "
                      "finetune, compare, ablate, blame, report, eval, exits, pretrain, tune, sweep, selfplay, info. "
                  "Next: cairn --help"),
        (["--fast"], "No such option: --fast. Next: cairn --help"),
        (["info", "--contxt", "3"], "No such option: --contxt (Possible options: --context). Next: cairn info --help"),
        (["info", "1m", "--context", "0"], "Invalid value for '--context': Input should be greater than or "
                                           "equal to 1. Next: cairn info --help"),
        (["info", "1m", "2m"], "Got unexpected extra argument(s) (2m). Next: cairn info --help"),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line_and_exit_2(cairn: Callable, arguments: list[str], line: str) -> None:
    done = cairn(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"cairn: error: {line}\n")


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Puts a verb named `fake` that does what the test says into the table."""

    def put(body: Callable[[], None]) -> None:
        module = types.ModuleType("fake_verb")

        def fake() -> None:
            """A verb of the tests."""
            body()

        module.fake = fake  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_verb", module)
        monkeypatch.setitem(cli.VERBS, "fake", ("fake_verb", "fake", "A verb of the tests."))

    return put


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("r.yaml", ["steps: required"]), 2, "r.yaml: steps: required"),
        (ShardError("truncated", value="shard-0", next="write it"), 3, "truncated: 'shard-0'. Next: write it"),
        (EngineError("no logprobs"), 4, "no logprobs"),
        (MissingExtraError("lm_eval", "eval"), 6, "lm_eval is not installed. Next: pip install 'cairn-lm[eval]'"),
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a"), 5, "no space left on the disk: '/runs/a'"),
        (PermissionError(errno.EACCES, "Permission denied", "/runs/a"), 5, "no permission to write: '/runs/a'"),
        (ZeroDivisionError("by\nzero"), 1, "unexpected ZeroDivisionError: by zero. Next: CAIRN_DEBUG=1"),
        (typer.Exit(3), 3, ""),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on"),
    ],
)  # fmt: skip
def test_exit_codes(verb: Callable, capsys: pytest.CaptureFixture, error: BaseException, code: int, text: str) -> None:
    def body() -> None:
        raise error

    verb(body)
    assert cli.main(["fake"]) == code
    printed = capsys.readouterr()
    assert text in printed.err and printed.out == "" and "Traceback" not in printed.err
    assert printed.err.count("\n") == (1 if text else 0)


def test_interrupt_while_a_verb_is_imported(
    verb: Callable, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    verb(lambda: None)
    monkeypatch.setattr(cli.importlib, "import_module", interrupt)
    assert cli.main(["fake"]) == 130
    assert capsys.readouterr().err == "cairn: interrupted; run the same command again to go on\n"


@pytest.mark.parametrize("how", ["--debug", "CAIRN_DEBUG"])
def test_debug_shows_the_traceback(
    verb: Callable, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def body() -> None:
        raise EngineError("no logprobs")

    verb(body)
    if how == "CAIRN_DEBUG":
        monkeypatch.setenv("CAIRN_DEBUG", "1")
    assert cli.main(["--debug", "fake"] if how == "--debug" else ["fake"]) == 4
    printed = capsys.readouterr().err
    assert "Traceback" in printed and printed.endswith("cairn: error: no logprobs\n")


def test_success_is_zero(verb: Callable, capsys: pytest.CaptureFixture) -> None:
    verb(lambda: print("done"))
    assert cli.main(["fake"]) == 0
    assert capsys.readouterr().out == "done\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "cairn", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
