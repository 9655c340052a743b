"""Sequence-level distillation: a teacher writes texts, and they become a source of the pretraining.

    documents ─ beginnings ─▶ prompts ─▶ teacher ─▶ answers.jsonl (fsynced) ─▶ text.jsonl ─▶ a source like any other

Text crosses tokenizers: the teacher may be anything behind the teacher seam, a server as well as a model in this
process. An answer that is on the disk is never asked for again.

Source: sequence-level knowledge distillation, arXiv 1606.07947.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from cairn.config import StrictModel
from cairn.data.corpora import SourceConfig, iterate
from cairn.data.distill_answers import Answer, Answers, Ask, json_line
from cairn.data.distill_config import HuggingFaceTeacher, OpenAITeacher, RecordedTeacherSettings
from cairn.data.teacher import Teacher
from cairn.errors import CairnError, ConfigError, DataError, InputError
from cairn.files import write_text
from cairn.progress import Progress

__all__ = ["TEXT_FILE", "WrittenConfig", "write_teacher_text"]

TEXT_FILE = "text.jsonl"
_TOGETHER = 64  # questions handed to the teacher at once


class WrittenConfig(StrictModel):
    """Text that a teacher writes for the pretraining.

    Args:
        teacher: who writes, as in `cairn distill`; `sampling` says how.
        prompts: documents whose beginnings are continued.
        documents: how many of them.
        prompt_characters: the beginning: so many characters, ended at a space.
        ask: what the teacher is asked, with {beginning} in it; a base model continues the bare beginning.
        keep_beginning: the text is beginning and answer; otherwise the answer alone.
        keep_cut: also keep answers that the length limit ended.
        name, licence, weight, repeat: of the source that comes about, as of any source.
    """

    teacher: Annotated[HuggingFaceTeacher | OpenAITeacher | RecordedTeacherSettings, Field(discriminator="kind")]
    prompts: SourceConfig
    documents: int = Field(ge=1)
    prompt_characters: int = Field(120, ge=1)
    ask: str = "{beginning}"
    keep_beginning: bool = True
    keep_cut: bool = True
    name: str = Field("written", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    licence: str = Field(min_length=1)
    weight: float | None = Field(None, gt=0)
    repeat: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _asks(self) -> WrittenConfig:
        if self.ask.count("{beginning}") != 1:
            raise ValueError(f"ask: {self.ask!r} must hold {{beginning}} once")
        return self

    def source(self, path: Path) -> SourceConfig:
        """Returns the source that the finished file is."""
        return SourceConfig(name=self.name, licence=self.licence, path=str(path), weight=self.weight,
                            repeat=self.repeat)


def write_teacher_text(
    config: WrittenConfig,
    teacher: Teacher | None,
    out: str | Path,
    seed: int,
    *,
    root: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Lets the teacher write, or go on writing.

    Args:
        config: settings.
        teacher: who is asked; None where every answer is there already.
        out: folder of answers.jsonl and text.jsonl.
        seed: of the sampling; each prompt has its own from it.
        root: folder that relative paths start from.
        say: takes lines for the reader.

    Returns:
        The file of texts, {"text": ...} a line.

    Raises:
        ConfigError: there is no teacher, and answers are missing.
        DataError: the prompts cannot be read, or no text came about.
        EngineError: the teacher failed; its answers so far are kept and the same command asks for the rest.
        StorageError: the disk is full or may not be written.
    """
    folder = Path(out)
    done = folder / TEXT_FILE
    if done.exists():
        return done
    folder.mkdir(parents=True, exist_ok=True)
    beginnings = _beginnings(config, root, seed)
    system = config.teacher.system
    asks = [
        Ask(config.ask.replace("{beginning}", one), config.teacher.sampling, stage=config.name, item=str(number))
        .seeded(system, seed) for number, one in enumerate(beginnings)
    ]
    answers = Answers(folder / "answers.jsonl")
    try:
        refused = _ask_all(asks, answers, teacher, system)
        found = [answers.find(ask, system) for ask in asks]
    finally:
        answers.close()
    texts = [_text(config, beginning, answer) for beginning, answer in zip(beginnings, found, strict=True)]
    kept = [text for text in texts if text is not None]
    if not kept:
        raise DataError("the teacher wrote no text that can be kept", value=f"{len(asks)} prompts",
                        next=f"see {folder / 'answers.jsonl'}; set keep_cut, or raise sampling.max_new_tokens")
    write_text(done, "".join(json_line({"text": text}) for text in kept))
    say(f"written: {len(kept):,} texts of {len(asks):,} prompts ({refused:,} refused by the teacher), "
        f"{sum(len(text) for text in kept):,} characters")
    return done


def _beginnings(config: WrittenConfig, root: str | Path | None, seed: int) -> list[str]:
    found = {}  # an ordered set: the same beginning twice would be the same answer twice
    for text in iterate(config.prompts, root=root, seed=seed):
        start = text[: config.prompt_characters]
        if len(text) > len(start) and " " in start.strip():
            start = start[: start.rindex(" ")]
        if start.strip():
            found[start.rstrip()] = None
        if len(found) == config.documents:
            break
    if len(found) < config.documents:
        raise DataError(f"{config.prompts.name} has too few different beginnings", value=len(found),
                        allowed=f"written.documents = {config.documents}", next="lower it, or name more prompts")
    return list(found)


def _ask_all(asks: list[Ask], answers: Answers, teacher: Teacher | None, system: str | None) -> int:
    """Asks for what is not answered yet; returns how many prompts the teacher cannot take."""
    open_asks = [ask for ask in asks if answers.find(ask, system) is None]
    if not open_asks:
        return 0
    if teacher is None:
        raise ConfigError("data.written", [f"{len(open_asks):,} texts are not written yet, and no teacher is given"],
                          next="run `cairn pretrain RECIPE`, which opens the recipe's teacher")
    refused = 0
    failed: list[CairnError] = []
    with Progress("teacher", len(asks), start=len(asks) - len(open_asks)) as progress:
        for part in _parts(open_asks):

            def take(place: int, answer: Answer | CairnError, part: tuple[Ask, ...] = part) -> None:
                nonlocal refused
                if isinstance(answer, InputError):
                    refused += 1
                elif isinstance(answer, CairnError):
                    failed.append(answer)
                else:
                    answers.add(part[place], system, answer)
                progress.advance(1)

            teacher.ask(part, take, lambda place: not failed)
            if failed:
                raise failed[0]
    return refused


def _parts(asks: list[Ask]) -> list[tuple[Ask, ...]]:
    return [tuple(asks[start : start + _TOGETHER]) for start in range(0, len(asks), _TOGETHER)]


def _text(config: WrittenConfig, beginning: str, answer: Answer | None) -> str | None:
    if answer is None or not answer.text.strip() or (answer.finish == "length" and not config.keep_cut):
        return None
    if not config.keep_beginning:
        return answer.text.strip()
    glue = "" if answer.text[:1].isspace() or config.ask == "{beginning}" else " "
    return beginning + glue + answer.text.rstrip()
