"""Teachers: who writes the hand-offs.

    EngineTeacher    any engine: a URL, a model in this process, a script in a test
    LaterTeacher     an engine that is opened when it is asked for the first time
    RecordedTeacher  a file of answers; the answers.jsonl of a run is one
    NoTeacher        every hand-off comes from the row or a rule
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from cairn.data.distill_answers import Answer, Ask, prompt_hash, read_answers
from cairn.engines.base import Engine, Generation, GenerationRequest
from cairn.errors import CairnError, EngineError, InputError

__all__ = ["EngineTeacher", "LaterTeacher", "NoTeacher", "RecordedTeacher", "Teacher"]

Done = Callable[[int, Answer | CairnError], None]
Go = Callable[[int], bool]


class Teacher(Protocol):
    """Anything with these members is a teacher."""

    @property
    def name(self) -> str: ...

    @property
    def system(self) -> str | None:
        """The system message, part of every prompt's hash."""
        ...

    def ask(self, asks: Sequence[Ask], done: Done, go: Go) -> None:
        """Answers questions in any order, one `done` at a time; one for which `go` says False is left out.

        An InputError says that this prompt cannot be answered, a ConfigError that none can, any other error that there
        is no answer now.
        """
        ...


class EngineTeacher:
    """A teacher behind the engine seam.

    Args:
        engine: answers the prompts. If it has `generate_each` (the OpenAI engine), answers come one by one.
        name: for the provenance.
        system: the engine's system message.
        batch: prompts given to other engines at once.
    """

    def __init__(self, engine: Engine, name: str, *, system: str | None = None, batch: int = 16) -> None:
        self.engine, self.name, self.system = engine, name, system
        self._batch = batch

    def ask(self, asks: Sequence[Ask], done: Done, go: Go) -> None:
        """See `Teacher.ask`."""
        requests = [GenerationRequest(one.prompt, None, one.sampling) for one in asks]

        def take(place: int, result: Generation | CairnError) -> None:
            done(place, result if isinstance(result, CairnError) else self._answer(asks[place], result))

        each = getattr(self.engine, "generate_each", None)
        if each is not None:
            each(requests, take, go=go)
            return
        for start in range(0, len(asks), self._batch):
            places = [place for place in range(start, min(start + self._batch, len(asks))) if go(place)]
            for place, result in self._batched(places, requests):
                take(place, result)

    def _batched(
        self, places: Sequence[int], requests: Sequence[GenerationRequest]
    ) -> list[tuple[int, Generation | CairnError]]:
        """Answers a batch; if one prompt of it cannot be answered, each alone."""
        if not places:
            return []
        try:
            made = self.engine.generate([requests[place] for place in places])
            return list(zip(places, made, strict=True))
        except InputError as error:
            if len(places) == 1:
                return [(places[0], error)]
        return [found for place in places for found in self._batched([place], requests)]

    def _answer(self, ask: Ask, made: Generation) -> Answer:
        return Answer(
            made.text, made.finish, self.name, ask.sampling.model_dump(mode="json"), made.prompt_tokens,
            made.new_tokens, made.seconds,
        )  # fmt: skip


class LaterTeacher:
    """A teacher that is opened when it is asked for the first time: a run whose answers are all there needs none.

    Args:
        name: for the provenance.
        system: the system message.
        start: opens it, given its name.
    """

    def __init__(self, name: str, system: str | None, start: Callable[[str], EngineTeacher]) -> None:
        self.name, self.system = name, system
        self._start = start
        self._open: EngineTeacher | None = None

    @property
    def tokens_estimated(self) -> bool:
        """Whether the server did not count tokens, so that they are estimates."""
        return bool(self._open is not None and getattr(self._open.engine, "tokens_estimated", False))

    def ask(self, asks: Sequence[Ask], done: Done, go: Go) -> None:
        """See `Teacher.ask`."""
        if self._open is None:
            self._open = self._start(self.name)
        self._open.ask(asks, done, go)


class NoTeacher:
    """Stands where every hand-off comes from the row or a rule; it has no answer to anything."""

    system = None

    def __init__(self, name: str = "none") -> None:
        self.name = name

    def ask(self, asks: Sequence[Ask], done: Done, go: Go) -> None:
        """See `Teacher.ask`."""
        for place, one in enumerate(asks):
            done(place, EngineError("there is no teacher to ask", value=one.prompt))


class RecordedTeacher:
    """Answers from a file.

    Args:
        path: JSON lines with `prompt_sha256` and `text`, and if they are there `attempt`, `finish`, `teacher`,
            `sampling`, `prompt_tokens`, `new_tokens`.
        system: the system message that the recording was made with.

    Raises:
        DataError: the file cannot be read, or a line is no answer.
    """

    def __init__(self, path: str | Path, *, system: str | None = None) -> None:
        self.name = f"recorded:{Path(path).name}"
        self.system = system
        self._answers = read_answers(path, self.name)

    def ask(self, asks: Sequence[Ask], done: Done, go: Go) -> None:
        """See `Teacher.ask`."""
        for place, one in enumerate(asks):
            if not go(place):
                continue
            name = prompt_hash(one.prompt, self.system)
            found = self._answers.get((name, one.attempt))
            fault = EngineError(f"{self.name} has no answer to this prompt (prompt_sha256 {name})", value=one.prompt)
            done(place, fault if found is None else found)
