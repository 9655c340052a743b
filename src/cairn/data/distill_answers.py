"""What a teacher was asked and what it said: on the disk before anybody uses it, and never asked twice.

    Ask ── prompt_hash, attempt ── answers.jsonl has it? ── yes ──> Answer, no call
                                        └── no ── Budget.take ── the teacher ── one line, fsynced ──> Answer

The prompt's hash is the SHA-256 of the JSON list [system message or null, prompt]. A line is written as soon as an
answer is there and before anybody looks at it, so that a process killed at any moment has lost only what was under way.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cairn.engines.base import Sampling
from cairn.errors import DataError, storage_error
from cairn.files import lock_file, sha256_json
from cairn.runs import read_jsonl

__all__ = ["Answer", "Answers", "Ask", "Budget", "json_line", "prompt_hash", "read_answers"]

_CHARACTERS_PER_TOKEN = 4  # of a prompt that is still to be sent


def prompt_hash(prompt: str, system: str | None = None) -> str:
    """Returns the hash by which an answer is found again: SHA-256 of the JSON list [system, prompt]."""
    return sha256_json([system, prompt])


def json_line(row: Mapping[str, Any]) -> str:
    """Returns a row as one line of JSON that can be written as UTF-8 and reads back the same.

    Half of a pair of surrogates, which servers do send, is written as an escape.
    """
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(row)
    return line + "\n"


@dataclass(frozen=True)
class Ask:
    """One question to a teacher.

    Args:
        prompt: what is asked.
        sampling: with a seed of its own.
        attempt: 0, or how often the same prompt was asked before.
        stage: that it is for.
        item: id of the row that it is for.
    """

    prompt: str
    sampling: Sampling
    attempt: int = 0
    stage: str = ""
    item: str = ""

    def seeded(self, system: str | None, seed: int) -> Ask:
        """Returns the same with a seed that depends on the prompt and the attempt, not on the order of things."""
        text = f"{seed} {prompt_hash(self.prompt, system)} {self.attempt}"
        drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
        sampling = self.sampling.model_copy(update={"seed": drawn})
        return Ask(self.prompt, sampling, self.attempt, self.stage, self.item)


@dataclass(frozen=True)
class Answer:
    """What a teacher said.

    Args:
        text: as it came.
        finish: "stop", "length" (cut off at max_new_tokens), or what the server called it.
        teacher: who said it.
        sampling: how.
        prompt_tokens: read. new_tokens: written. seconds: from request to answer.
        copied: taken from the file of another run.
    """

    text: str
    finish: str
    teacher: str
    sampling: Mapping[str, Any]
    prompt_tokens: int
    new_tokens: int
    seconds: float
    copied: bool = False


def read_answers(path: str | Path, name: str = "unknown") -> dict[tuple[str, int], Answer]:
    """Reads a file of answers: (prompt hash, attempt) -> answer; an unfinished last line is left out.

    Args:
        path: the file.
        name: of the teacher, for lines that do not say it.

    Raises:
        DataError: the file cannot be read, or a line is no answer.
    """
    try:
        rows = read_jsonl(path)
    except FileNotFoundError:
        raise DataError("no such file of answers", value=str(path), next="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the answers cannot be read ({error})", value=str(path)) from None
    found: dict[tuple[str, int], Answer] = {}
    for number, row in enumerate(rows, start=1):
        key, text, attempt = row.get("prompt_sha256"), row.get("text"), row.get("attempt", 0)
        counts = [row.get(name, 0) for name in ("prompt_tokens", "new_tokens", "seconds")]
        right = isinstance(key, str) and isinstance(text, str) and isinstance(attempt, int)
        if not right or not all(isinstance(count, int | float) for count in counts):
            form = '{"prompt_sha256": ..., "text": ...}'
            raise DataError(f"{path}, row {number}: no answer", value=row, allowed=form)
        made = Answer(
            text, str(row.get("finish", "stop")), str(row.get("teacher", name)), row.get("sampling") or {},
            int(counts[0]), int(counts[1]), float(counts[2]), copied=row.get("copied") is True,
        )  # fmt: skip
        found.setdefault((key, attempt), made)
    return found


class Answers:
    """Every answer of a run, on the disk before anybody uses it.

    Args:
        path: answers.jsonl; an unfinished last line is cut off.
        others: files of other runs; their answers are used, and copied, before the teacher is asked.

    Raises:
        DataError: a file cannot be read, or a line in the middle is damaged.
        StorageError: the file cannot be written.
    """

    def __init__(self, path: str | Path, others: Sequence[str | Path] = ()) -> None:
        self.path = Path(path)
        self._other: dict[tuple[str, int], Answer] = {}
        for other in others:
            self._other = {**read_answers(other), **self._other}
        try:
            if self.path.exists():
                data = self.path.read_bytes()
                whole = data.rfind(b"\n") + 1
                if whole < len(data):
                    os.truncate(self.path, whole)
            self._file = open(self.path, "ab", buffering=0)
            lock_file(self._file, self.path, "making these examples")  # it would make the same calls
        except OSError as error:
            raise storage_error(error, self.path) from error
        self._known = read_answers(self.path)
        own = [one for one in self._known.values() if not one.copied]
        self.calls = len(own)
        self.tokens = sum(one.prompt_tokens + one.new_tokens for one in own)

    def find(self, ask: Ask, system: str | None) -> Answer | None:
        """Returns the answer to a prompt, if there is one."""
        key = (prompt_hash(ask.prompt, system), ask.attempt)
        if key not in self._known and key in self._other:
            self._write(ask, key, replace(self._other[key], copied=True))
        return self._known.get(key)

    def add(self, ask: Ask, system: str | None, answer: Answer) -> None:
        """Writes an answer to the disk; when this returns, no power cut loses it.

        Raises:
            StorageError: the disk is full or the file may not be written.
        """
        self._write(ask, (prompt_hash(ask.prompt, system), ask.attempt), answer)
        self.calls += 1
        self.tokens += answer.prompt_tokens + answer.new_tokens

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, ask: Ask, key: tuple[str, int], answer: Answer) -> None:
        row = {
            "prompt_sha256": key[0], "attempt": key[1], "stage": ask.stage, "item": ask.item, "teacher": answer.teacher,
            "sampling": dict(answer.sampling), "finish": answer.finish, "prompt_tokens": answer.prompt_tokens,
            "new_tokens": answer.new_tokens, "seconds": round(answer.seconds, 3), "copied": answer.copied,
            "text": answer.text,
        }  # fmt: skip
        rest = memoryview(json_line(row).encode())
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error(error, self.path) from error
        self._known[key] = answer


class Budget:
    """How many calls and tokens a run may use, all its restarts together.

    What is under way counts as if it used all it may, so that the limit holds however many workers there are; only the
    length of a prompt is estimated.

    Args:
        answers: what has been used.
        max_calls: answered calls. max_tokens: read and written. None is no limit.
    """

    def __init__(self, answers: Answers, max_calls: int | None = None, max_tokens: int | None = None) -> None:
        self._answers = answers
        self.max_calls, self.max_tokens = max_calls, max_tokens
        self._under_way: dict[int, int] = {}
        self.spent = False

    def take(self, place: int, ask: Ask) -> bool:
        """Reserves a call; False if the budget has no room for it now. `spent` if nothing under way may make room."""
        tokens = len(ask.prompt) // _CHARACTERS_PER_TOKEN + ask.sampling.max_new_tokens
        calls = self._answers.calls + len(self._under_way)
        used = self._answers.tokens + sum(self._under_way.values())
        full = self.max_calls is not None and calls >= self.max_calls
        full = full or (self.max_tokens is not None and used + tokens > self.max_tokens)
        if full:
            self.spent = self.spent or not self._under_way
            return False
        self._under_way[place] = tokens
        return True

    def give_back(self, place: int) -> None:
        """Ends a reservation: the call is answered, and counted, or it failed."""
        self._under_way.pop(place, None)
