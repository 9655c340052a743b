"""The section `distill:` of a recipe: where the data comes from, who the teacher is, what it is asked for each stage.

    distill:
      source: {name: alpaca, licence: CC BY-NC 4.0, path: alpaca_data.json}
      inputs: {request: "{instruction}\\n{input}"}             fields of a row -> inputs of the stack
      teacher: {kind: openai, url: "http://localhost:8000/v1", model: meta-llama/Llama-3.2-3B-Instruct}
      stages:
        plan: {prompt: "Request:\\n{request}\\n\\nList the points that an answer must hold."}
        answer: {value: "{output}"}                            taken from the row, no call
      language: en

What decides an answer and what only decides how it is fetched are kept apart (`identity`): a run may go on with another
address or more workers, but not with another prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cairn.config import StrictModel, parse_config
from cairn.data.corpora import SourceConfig
from cairn.data.examples import StackView
from cairn.data.instructions import SourceSettings
from cairn.engines.base import Sampling
from cairn.errors import ConfigError, did_you_mean
from cairn.prompts import template_faults, template_fields

__all__ = [
    "DistillConfig",
    "HuggingFaceTeacher",
    "OpenAITeacher",
    "RecordedTeacherSettings",
    "RuleTeacherSettings",
    "StagePlan",
    "distill_config",
]

_TEACHER_SAMPLING = Sampling(max_new_tokens=256, temperature=0.7, top_p=0.95)


class OpenAITeacher(StrictModel):
    """A teacher behind an OpenAI-compatible URL: hosted, vLLM, llama-server, Ollama.

    Args:
        url: of the API, such as "http://localhost:8000/v1".
        model: as the server calls it.
        api: "chat" or "completions".
        system: system message of a chat.
        sampling: how tokens are chosen; a stage may have its own.
        api_key_env: name of the environment variable with the key; the key itself never stands in a recipe.
        concurrency: requests under way at once.
        timeout_s: for one whole response.
        retries: further tries after a fault that may pass.
        extra_body: put into every request, over what stands there; null takes a key out.
    """

    kind: Literal["openai"]
    url: str
    model: str = Field(min_length=1)
    api: Literal["chat", "completions"] = "chat"
    system: str | None = None
    sampling: Sampling = _TEACHER_SAMPLING
    api_key_env: str | None = None
    concurrency: int = Field(default=8, ge=1, le=512)
    timeout_s: float = Field(default=120.0, gt=0)
    retries: int = Field(default=6, ge=0, le=100)
    extra_body: dict[str, Any] = {}


class HuggingFaceTeacher(StrictModel):
    """A model of the Hugging Face hub, or a folder, that runs in this process.

    Args:
        model: hub name, folder, or "embedded:base".
        system: system message of a chat.
        chat: put the prompt into the tokenizer's chat template; None does so if it has one.
        sampling: how tokens are chosen; a stage may have its own.
        batch: prompts answered together; each batch is kept as soon as it is done.
        device: auto, cpu, cuda or mps.
        dtype: auto, float32, bfloat16 or float16.
    """

    kind: Literal["huggingface"]
    model: str = Field(min_length=1)
    system: str | None = None
    chat: bool | None = None
    sampling: Sampling = _TEACHER_SAMPLING
    batch: int = Field(default=16, ge=1)
    device: str = "auto"
    dtype: str = "auto"


class RecordedTeacherSettings(StrictModel):
    """Answers that were recorded, such as the answers.jsonl that a run leaves behind.

    Args:
        path: JSON lines with prompt_sha256 and text; relative to the recipe.
        system: the system message that the recording was made with: it is part of the hash.
        sampling: only for the provenance of rows that do not say their own.
    """

    kind: Literal["recorded"]
    path: str
    system: str | None = None
    sampling: Sampling = _TEACHER_SAMPLING


class RuleTeacherSettings(StrictModel):
    """A plain Python function that derives the hand-offs from the gold answer: no model at all.

    Args:
        function: a name of `data.distill_rules`, or "package.module:function"; it is given the fields of a row, the
            inputs and `gold`, and returns stage -> text, or a list with one text per call.
    """

    kind: Literal["rule"]
    function: str = Field(min_length=1)


Teacher = Annotated[
    OpenAITeacher | HuggingFaceTeacher | RecordedTeacherSettings | RuleTeacherSettings, Field(discriminator="kind")
]


class StagePlan(StrictModel):
    """Where the gold hand-off of one stage comes from: a prompt for the teacher, or a value taken from the row.

    Args:
        prompt: template over the fields of the row, the inputs, the earlier stages, `gold` (the right answer) and, as
            in the stage itself, `item` and `state`.
        value: template over the same; of a map or repeat stage one line per call.
        take: what counts of the teacher's text: "all", "first_line", "last_line", or "after_reasoning" (behind the
            last </think>).
        sampling: instead of the teacher's.
    """

    prompt: str | None = Field(default=None, min_length=1)
    value: str | None = Field(default=None, min_length=1)
    take: Literal["all", "first_line", "last_line", "after_reasoning"] = "all"
    sampling: Sampling | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> StagePlan:
        if (self.prompt is None) == (self.value is None):
            raise ValueError("give prompt, for the teacher, or value, taken from the row: one of both")
        if self.value is not None and (self.take != "all" or self.sampling is not None):
            raise ValueError("take and sampling are for a prompt, but the stage has a value")
        return self


class DistillConfig(StrictModel):
    """Everything that decides which examples come out.

    Args:
        source: the data.
        teacher: who writes the hand-offs; None if every stage takes a value from the row.
        inputs: input of the stack -> template over the fields of a row; the field of the same name by default.
        answer: template of the gold answer; "{output}" or "{answer}" by default, as the form of the data has it.
        stages: stage -> plan; every stage with a prompt of its own needs one, unless the teacher is a rule. Stages that
            are rules are worked out by their rule.
        tries: how often a prompt is asked, with another seed each time, until what comes back can be used.
        language: texts in another one are rejected: "en", "de", "es", "fr", "it", "nl", "pt"; None takes any.
        must_match: keep only chains whose answer is the gold answer (capitals, marks and "the" do not count).
        keep_out: evaluation sets; an example that holds their text is rejected.
        test_examples: so many of the rows are kept apart for test.jsonl, drawn with the seed.
        seed: of the draws and of the teacher's samples.
        wave: rows that go through all stages together: what a stop by the budget leaves unfinished.
        give_up_after: rows of a stage rejected, none accepted, after which the run ends with an error.
    """

    source: SourceSettings
    teacher: Teacher | None = None
    inputs: dict[str, str] = {}
    answer: str | None = None
    stages: dict[str, StagePlan] = {}
    tries: int = Field(default=2, ge=1, le=10)
    language: Literal["en", "de", "es", "fr", "it", "nl", "pt"] | None = None
    must_match: bool = False
    keep_out: list[SourceConfig] = []
    test_examples: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    wave: int = Field(default=64, ge=1)
    give_up_after: int = Field(default=50, ge=1)

    def identity(self) -> DistillConfig:
        """Returns the same with everything at its default that does not decide an answer, only how it is fetched."""
        teacher = self.teacher
        if isinstance(teacher, OpenAITeacher):
            kept = {"kind": "openai", "url": "http://localhost", "model": teacher.model}
            same = ("api", "system", "sampling", "extra_body")
            teacher = OpenAITeacher(**kept, **{key: getattr(teacher, key) for key in same})
        elif isinstance(teacher, HuggingFaceTeacher):
            teacher = teacher.model_copy(update={"batch": HuggingFaceTeacher.model_fields["batch"].default})
        return self.model_copy(update={"teacher": teacher})


def distill_config(section: Mapping[str, Any] | None, spec: StackView, source: str) -> DistillConfig:
    """Checks the section `distill:` of a recipe against its stack.

    Args:
        section: as read.
        spec: the recipe's stack.
        source: file name for the error.

    Raises:
        ConfigError: the section is missing, or anything in it is wrong: all faults at once.
    """
    if section is None:
        raise ConfigError(source, ["the recipe has no section distill"], next="docs/distill.md shows one")
    config = parse_config(DistillConfig, dict(section), f"{source}, distill")
    allowed = f"allowed: {', '.join(spec.inputs)}"
    faults = [
        f"inputs.{name}: the stack has no such input{did_you_mean(name, spec.inputs)}, {allowed}"
        for name in config.inputs
        if name not in spec.inputs
    ]
    for name, template in [*config.inputs.items(), ("answer", config.answer or "")]:
        faults += [f"{name}: {fault}" for fault in template_faults(template)]
    faults += _plan_faults(config, spec)
    if faults:
        raise ConfigError(f"{source}, distill", faults)
    return config


def _plan_faults(config: DistillConfig, spec: StackView) -> list[str]:
    faults = []
    by_model = [stage.name for stage in spec.stages if stage.rule is None]
    for name in config.stages:
        if name not in by_model:
            why = "a rule works this stage out" if name in [stage.name for stage in spec.stages] else "no such stage"
            faults.append(f"stages.{name}: {why}{did_you_mean(name, by_model)}, allowed: {', '.join(by_model)}")
    if not isinstance(config.teacher, RuleTeacherSettings):
        faults += [
            f"stages.{name}: required, but missing: a prompt for the teacher, or a value taken from the row"
            for name in by_model
            if name not in config.stages
        ]
    for stage in spec.stages:
        plan = config.stages.get(stage.name)
        if plan is None or stage.name not in by_model:
            continue
        where, template = f"stages.{stage.name}", plan.prompt or plan.value or ""
        if plan.prompt is not None and config.teacher is None:
            faults.append(f"{where}: has a prompt, but there is no teacher, allowed: value, or a teacher")
        if plan.prompt is not None and isinstance(config.teacher, RuleTeacherSettings):
            faults.append(f"{where}: a rule teacher is asked nothing, allowed: value, or no plan at all")
        wrong = template_faults(template)
        faults += [f"{where}: {fault}" for fault in wrong]
        if wrong:
            continue
        read = template_fields(template)
        names = [one.name for one in spec.stages]
        later = [name for name in read if name in names[names.index(stage.name) :]]
        faults += [f"{where}: uses {{{name}}}, which is not made before this stage" for name in later]
        per_call = {"item": stage.over is not None, "state": stage.kind == "repeat"}
        for name, there in per_call.items():
            if name in read and (not there or plan.value is not None):
                faults.append(f"{where}: uses {{{name}}}, which only the prompt of a stage with it has")
        if plan.prompt is not None and stage.kind != "once" and not any(name in read for name in per_call):
            faults.append(f"{where}: the prompt of a {stage.kind} stage must read {{item}} or {{state}}")
    return faults
