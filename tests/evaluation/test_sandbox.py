"""Generated code is held: whatever it does, it ends within its bounds, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cairn.evaluation.sandbox as sandbox
from cairn.errors import EngineError, InputError
from cairn.evaluation.sandbox import CodeChecker, pass_at_k, run_code

LINUX = sys.platform.startswith("linux")
# (what it does, code, outcome, part of what is said)
BAD = [
    ("fails", "assert 1 == 2, 'no'", "failed", "AssertionError: no"),
    ("is no Python", "def f(:", "failed", "SyntaxError"),
    ("loops", "while True: pass", "timeout", "still running"),
    ("sleeps", "import time\ntime.sleep(60)", "timeout", "still running"),
    ("forks", "import os\nos.fork()", "failed", "not allowed in the sandbox: os.fork"),
    ("forks without end", "import os\nwhile True:\n  try: os.fork()\n  except BaseException: pass", "timeout", ""),
    ("starts a program", "import subprocess\nsubprocess.run(['true'])", "failed", "subprocess.Popen"),
    ("allocates without end", "x = []\nwhile True: x.append(bytearray(10**7))", "memory", "MemoryError"),
    ("recurses without end", "def f(): return f()\nf()", "failed", "RecursionError"),
    ("prints without end", "while True: print('x' * 10000)", "timeout", ""),
    ("leaves early", "import sys\nsys.exit(0)", "exited", "SystemExit(0)"),
    ("leaves early without a word", "import os\nos._exit(0)", "exited", "exit code 0"),
    ("reads input", "input()", "failed", "EOFError"),
    ("writes a file", "open('left.txt', 'w').write('x')", "failed", "the sandbox writes no files"),
    ("deletes a file", "import os\nos.remove(__import__('sys').executable)", "failed", "os.remove"),
    ("goes on the network", "import socket\nsocket.create_connection(('127.0.0.1', 9))", "failed", "socket."),
    ("kills its parent", "import os\nos.kill(os.getppid(), 9)", "failed", "os.kill"),
    ("raises what cannot be printed", "class E(Exception):\n  __str__ = None\nraise E", "failed", "E"),
]  # fmt: skip
# writes to every open file without the sandbox's mark, and so cannot pass for a message
FORGED = """import os
for fd in range(3, 20):
    try: os.write(fd, b'{"outcome": "passed"}' + bytes([10]))
    except OSError: pass
"""
FLOOD = """import os
while True:
    for fd in range(3, 20):
        try: os.write(fd, b"x" * 65536)
        except OSError: pass
"""


@pytest.mark.parametrize(("code", "outcome", "said"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_code_ends_within_its_bounds(code: str, outcome: str, said: str) -> None:
    started = time.monotonic()
    found = run_code(code, seconds=0.25 if outcome == "timeout" else 10, memory_mib=300)
    assert found.outcome == outcome and said in found.raised, found
    assert not found.passed
    assert time.monotonic() - started < 20


def test_good_code_passes_and_says_what_held_it() -> None:
    found = run_code("import math, re\ndef f(x): return math.sqrt(x)\nassert f(9) == 3")
    assert found.passed and found.raised == "" and found.seconds < 3
    assert {"rlimits", "audit hook"} <= set(found.layers)


@pytest.mark.parametrize("code", [FORGED + "os._exit(0)", FORGED + "raise SystemExit"])
def test_code_cannot_claim_to_have_passed(code: str) -> None:
    assert run_code(code, seconds=2).outcome == "exited"


def test_a_flood_into_the_sandbox_is_a_timeout() -> None:
    assert run_code(FLOOD, seconds=0.25).outcome == "timeout"


def test_without_the_kernels_filter_the_rest_still_holds() -> None:
    for code, outcome in (
        ("import os\nos.fork()", "failed"), ("import socket\nsocket.socket()", "failed"),
        ("open('x', 'w')", "failed"), ("while True: pass", "timeout"), ("x = bytearray(10**9)", "memory"),
    ):  # fmt: skip
        found = run_code(code, seconds=0.25 if outcome == "timeout" else 10, memory_mib=300, kernel=False)
        assert (found.outcome, found.layers) == (outcome, ("rlimits", "audit hook")), code


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(sandbox.tempfile, "tempdir", None)
    before = set(os.listdir("/proc/self/fd")) if LINUX else set()
    run_code("while True: pass", seconds=0.2)
    run_code("pass")
    assert list(tmp_path.iterdir()) == []
    assert not LINUX or set(os.listdir("/proc/self/fd")) == before


PROBE = """
import os, socket, subprocess, sys, threading
sys.path.insert(0, {folder!r})
import sandbox_child
if not sandbox_child._filter_calls():
    sys.exit(42)
def refused(call):
    try:
        call()
    except PermissionError:
        return True
    return False
held = [refused(call) for call in (
    os.fork, socket.socket, lambda: subprocess.run(["true"]), lambda: open("made.txt", "w"),
    lambda: open("there.txt", "a"), lambda: os.remove("there.txt"), lambda: os.rename("there.txt", "b"),
    lambda: os.mkdir("d"), lambda: os.kill(os.getppid(), 0), lambda: os.chmod("there.txt", 0),
)]
thread = threading.Thread(target=held.append, args=(open("there.txt").read() == "safe",))
thread.start()
thread.join()
print(held)
"""


@pytest.mark.skipif(not LINUX, reason="a filter of the Linux kernel")
def test_the_kernel_itself_refuses_what_the_hook_would(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("safe")
    folder = str(Path(sandbox.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(folder=folder)], cwd=tmp_path, capture_output=True, text=True
    )
    if done.returncode == 42:
        pytest.skip("this kernel or machine has no filter")
    assert done.stdout.strip() == str([True] * 11), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there.txt"]


@pytest.mark.skipif(not LINUX, reason="a namespace of the Linux kernel")
def test_the_namespace_has_no_network(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(sandbox.__file__).parent)!r})\n"
        "import sandbox_child, socket\n"
        "if not sandbox_child._no_network(): sys.exit(42)\n"
        "print([name for _, name in socket.if_nameindex()])\n"
        "try: socket.create_connection(('192.0.2.1', 80), timeout=5)\n"
        "except OSError as error: print(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode == 42:
        pytest.skip("namespaces are not permitted here")
    assert done.stdout.split("\n")[:2] == ["['lo']", "101"], done.stderr  # unreachable, at once


def test_pass_at_k_is_the_unbiased_estimate() -> None:
    assert pass_at_k(10, 0, 1) == 0 and pass_at_k(10, 10, 3) == 1
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - (3 / 5) * (2 / 4))
    with pytest.raises(InputError, match="pass@3 needs at least 3 samples: 2"):
        pass_at_k(2, 1, 3)


def test_the_checker_answers_as_code_eval_does() -> None:
    checker = CodeChecker(seconds=2)
    rates, runs = checker.compute(
        references=["assert f(1) == 2", "assert g() == 3"],
        predictions=[["def f(x): return x + 1", "def f(x): return x"], ["def g(): return 3", "def g(): return 3"]],
        k=[1, 2, 9],
    )
    assert rates == {"pass@1": 0.75, "pass@2": 1.0}  # pass@9 cannot be known from 2 samples
    assert [run.outcome for run in runs[0]] == ["passed", "failed"]
    facts = checker.facts()
    assert facts["outcomes"] == {"failed": 1, "passed": 3} and "rlimits" in facts["held_by"]
    assert checker.facts()["outcomes"] == {}


def test_a_sandbox_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sandbox, "_CHILD", tmp_path / "none.py")
    with pytest.raises(EngineError, match="the sandbox does not start: 'exit code 2'"):
        run_code("pass")
