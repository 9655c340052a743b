"""`cairn distill` as a user meets it: killed again and again, a teacher that fails in every way, offline replay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cairn.cli import main
from cairn.data.distill_answers import prompt_hash
from cairn.data.examples import read_examples
from cairn.stacks.spec import load_stack
from tests.engines import fake_server
from tests.engines.fake_server import FakeServer, serving
from tests.engines.tiny_models import save_base

RECIPE: dict[str, Any] = {
    "recipe": "experiment",
    "name": "planets",
    "stack": {
        "name": "planets", "inputs": ["question"],
        "stages": [
            {"name": "plan", "prompt": "{question}\nPlan:", "contract": {"kind": "length", "max_words": 6}},
            {"name": "points", "kind": "map", "over": "plan", "split": "sentences", "reads": ["plan"], "join": " ",
             "prompt": "{item}\nPoint:", "contract": {"kind": "length", "max_words": 4}},
            {"name": "answer", "reads": ["points"], "prompt": "{question}\n{points}\nAnswer:"},
        ],
    },
    "distill": {
        "source": {"name": "made", "licence": "made for this test", "path": "rows.jsonl"},
        "teacher": {"kind": "openai", "url": "to be set", "model": "teacher", "system": "Be short.", "concurrency": 8,
                    "timeout_s": 1.0},
        "stages": {"plan": {"prompt": "PLAN {question}"}, "points": {"prompt": "POINT {item} of {question}"},
                   "answer": {"value": "{gold}"}},
        "language": "en",
        "wave": 6,
    },
}  # fmt: skip
ROWS = 14


def reply(prompt: str) -> str:
    if prompt.startswith("PLAN"):
        number = prompt.split()[-1].rstrip("?")
        return f"Look at {number}. Say it." if int(number) % 10 else "a plan that has far too many words in it"
    return f"look {prompt.split()[1]}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    rows = [{"question": f"Which is planet {n}?", "answer": f"planet {n} of the list"} for n in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer(reply=reply)) as running:
        yield running


def command(home: Path, server: FakeServer, *more: str, out: str = "out") -> list[str]:
    url = f"distill.teacher.url={server.url}"
    return ["distill", str(home / "r.yaml"), "--out", str(home / out), "--set", url, *more]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answered(path: Path) -> set[tuple[str, int]]:
    """The answers that are whole on the disk."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return {(row["prompt_sha256"], row["attempt"]) for row in map(json.loads, lines)}


def test_killed_again_and_again_no_answered_call_is_repeated(home: Path, server: FakeServer) -> None:
    kinds = [fake_server.RATE_LIMIT, fake_server.SERVER_FAULT, fake_server.GARBAGE, fake_server.DROPPED]

    def faults(body: dict[str, Any], before: int) -> Any:  # about every third prompt fails before its answer
        if "PLAN Which is planet 5?" in server.prompt(body):
            return 1.3 if before == 0 else None  # slower than the client waits
        draw = zlib.crc32(server.prompt(body).encode()) % 12
        return kinds[draw] if before == 0 and draw < len(kinds) else None

    server.faults = faults
    server.delay_s = 0.01
    arguments = command(home, server)
    environment = {**os.environ, "COLUMNS": "100"}
    known: list[set[tuple[str, int]]] = []
    marks: list[int] = []
    for wanted in (3, 14, 27):  # killed when so many answers are on the disk, wherever that leaves the process
        process = subprocess.Popen(
            [sys.executable, "-m", "cairn", *arguments], env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        ends = time.monotonic() + 300
        while len(answered(home / "out" / "answers.jsonl")) < wanted and process.poll() is None:
            time.sleep(0.003)
            assert time.monotonic() < ends
        assert process.poll() is None, "it must not end before it is killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.1)  # the server ends what was under way
        known.append(answered(home / "out" / "answers.jsonl"))
        marks.append(len(server.bodies))
        assert not (home / "out" / "manifest.json").exists()
    done = subprocess.run([sys.executable, "-m", "cairn", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # what was on the disk at a kill was never sent again after it
    seeds = {(row["prompt_sha256"], row["sampling"]["seed"]): row["attempt"]
             for row in rows_of(home / "out" / "answers.jsonl")}  # fmt: skip
    sent = [(prompt_hash(server.prompt(body), "Be short."), body["seed"]) for body in server.bodies]
    for before, mark in zip(known, marks, strict=True):
        later = {(key, seeds[key, seed]) for key, seed in sent[mark:] if (key, seed) in seeds}
        assert len(before) >= 3 and not later & before
    # and every answer stands on the disk once, asked for once but for what was under way at one of the three kills
    answers = rows_of(home / "out" / "answers.jsonl")
    keys = Counter((row["prompt_sha256"], row["attempt"]) for row in answers)
    assert set(keys.values()) == {1}
    assert sum(server.answered.values()) - len(answers) <= 3 * 8
    # every row once, as an example or with its reason
    kept, gone = rows_of(home / "out" / "train.jsonl"), rows_of(home / "out" / "rejected.jsonl")
    assert sorted(int(row["id"]) for row in kept + gone) == list(range(1, ROWS + 1))
    assert [(row["id"], row["kind"]) for row in gone] == [("1", "contract"), ("11", "contract")]
    # the same as a run that nobody disturbed, and as one that replays the answers with the server gone
    server.faults, server.delay_s = (lambda body, before: None), 0.0
    asked = len(server.bodies)
    assert main(command(home, server, out="calm")) == 0
    assert len(server.bodies) - asked == len(answers)
    recorded = f"distill.teacher={{kind: recorded, path: {home / 'out' / 'answers.jsonl'}, system: Be short.}}"
    assert main(["distill", str(home / "r.yaml"), "--out", str(home / "replay"), "--set", recorded]) == 0
    for other in ("calm", "replay"):
        for name in ("train.jsonl", "provenance.jsonl", "rejected.jsonl"):
            assert (home / other / name).read_bytes() == (home / "out" / name).read_bytes(), (other, name)


def test_a_fresh_run_leaves_a_stack_that_finetune_can_read(home: Path, server: FakeServer, capsys: Any) -> None:
    assert main(command(home, server, "--concurrency", "2", "--set", "distill.test_examples=5")) == 0
    shown = capsys.readouterr()
    assert f"whole: {home / 'out'}. Next: cairn finetune {home / 'out' / 'stack.yaml'}" in shown.out
    assert "14 rows: 12 examples" in shown.out and "2 rejected, contract: row 1 at plan" in shown.out
    assert server.most_under_way <= 2
    spec = load_stack(home / "out")
    examples = read_examples(home / "out" / str(spec.examples), spec)
    assert len(examples) + len(rows_of(home / "out" / "test.jsonl")) == 12
    report = json.loads((home / "out" / "report.json").read_text())
    assert report["answers"]["calls"] == 14 + 2 + 2 * 12
    assert report["stages"]["plan"]["again"] == 2 and report["stages"]["points"]["texts"] == 24
    server.faults = lambda body, before: pytest.fail("asked again")
    assert main(command(home, server, "--set", "distill.test_examples=5")) == 0


def test_budget_and_then_the_rest(home: Path, server: FakeServer, capsys: Any) -> None:
    assert main(command(home, server, "--max-calls", "20")) == 0
    assert "stopped at the budget (--max-calls 20)" in capsys.readouterr().out
    assert sum(server.answered.values()) == 20 and not (home / "out" / "manifest.json").exists()
    assert main(command(home, server)) == 0
    assert sum(server.answered.values()) == 40 == len(rows_of(home / "out" / "answers.jsonl"))


def error_of(capsys: Any, code: int) -> str:
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert code and "Traceback" not in text
    return text


def test_a_teacher_down_a_wrong_key_and_rows_that_keep_failing(home: Path, server: FakeServer, capsys: Any) -> None:
    down = [*command(home, server)[:-1], "distill.teacher.url=http://127.0.0.1:9/v1"]
    code = main(down)
    assert code == 4 and "the server did not answer, asked once: no connection" in error_of(capsys, code)
    server.api_key = "wanted"
    code = main(command(home, server))
    assert code == 2 and "no key was sent; name its variable in api_key_env" in error_of(capsys, code)
    server.api_key = None
    bad = lambda body: "PLAN Which is planet 7?" in server.prompt(body)  # noqa: E731
    server.faults = lambda body, before: fake_server.SERVER_FAULT if bad(body) else None
    code = main(command(home, server, "--set", "distill.teacher.retries=0"))
    assert code == 4 and "1 rows have no answer" in (text := error_of(capsys, code)) and "asks for them again" in text
    assert len(rows_of(home / "out" / "train.jsonl")) == 11 and not (home / "out" / "manifest.json").exists()
    server.faults = lambda body, before: (400, b'{"error": {"message": "too long"}}', {}) if bad(body) else None
    assert main(command(home, server)) == 0
    (gone,) = [row for row in rows_of(home / "out" / "rejected.jsonl") if row["kind"] == "refused"]
    assert gone["id"] == "8" and "HTTP 400): too long" in gone["detail"]


def test_a_recipe_without_the_section(home: Path, capsys: Any) -> None:
    plain = {key: value for key, value in RECIPE.items() if key != "distill"}
    (home / "plain.yaml").write_text(yaml.safe_dump(plain))
    code = main(["distill", str(home / "plain.yaml")])
    assert code == 2 and "the recipe has no section distill" in error_of(capsys, code)
    code = main(["distill", str(home / "r.yaml"), "--concurrency", "2", "--set", "distill.teacher=null"])
    assert code == 2 and "stages.points: has a prompt, but there is no teacher" in error_of(capsys, code)


def test_a_source_that_is_not_utf8(home: Path, server: FakeServer, capsys: Any) -> None:
    (home / "rows.jsonl").write_bytes('{"question": "naïve?", "answer": "x"}\n'.encode("latin-1"))
    code = main(command(home, server))
    assert code == 3 and "line 1: not UTF-8" in (text := error_of(capsys, code)) and "iconv -f LATIN1" in text


def test_interrupted_it_keeps_what_was_under_way(home: Path, server: FakeServer, python: Callable) -> None:
    server.delay_s = 0.1
    arguments = command(home, server)
    process = subprocess.Popen([sys.executable, "-m", "cairn", *arguments], stderr=subprocess.PIPE, text=True)
    while len(server.bodies) < 6 and process.poll() is None:
        time.sleep(0.003)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "run the same command again to go on" in said
    assert len(answered(home / "out" / "answers.jsonl")) == sum(server.answered.values()) == len(server.bodies)


def test_a_model_in_this_process_as_teacher(home: Path, capsys: Any) -> None:
    base = save_base(home / "base")
    sampling = "{max_new_tokens: 3, temperature: 0.7, stop: [.]}"
    teacher = f"distill.teacher={{kind: huggingface, model: {base}, batch: 4, dtype: float32, sampling: {sampling}}}"
    plans = "distill.stages={plan: {prompt: 'Mary {question}'}, points: {prompt: '{item}'}, answer: {value: '{gold}'}}"
    settings = ["--set", teacher, "--set", plans, "--set", "distill.language=null", "--set", "distill.tries=1"]
    main(["distill", str(home / "r.yaml"), "--out", str(home / "out"), *settings, "--max-calls", "6"])
    answers = rows_of(home / "out" / "answers.jsonl")
    assert len(answers) == 6 and {row["teacher"] for row in answers} == {f"huggingface:{base}"}
    assert all(row["new_tokens"] <= 3 and row["prompt_tokens"] > 3 for row in answers)
    assert [row["sampling"]["temperature"] for row in answers] == [0.7] * 6
    capsys.readouterr()
    system = teacher.replace("batch: 4", "system: Be short.")
    code = main(["distill", str(home / "r.yaml"), "--out", str(home / "chat"), "--set", system, "--set", plans])
    assert code == 2 and "has no chat template" in error_of(capsys, code)
