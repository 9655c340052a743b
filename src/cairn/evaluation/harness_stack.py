"""A stack as lm-evaluation-harness sees it: its `LM`, with hand-offs in between.

    context, document ── templates ── input fields ── stages before the answer's (once per distinct input) ── hand-offs
                            choices: log-likelihood of each as the answer stage's output, given the hand-offs
                            text:    the whole chain, cut at the task's stop texts

The harness knows a context, a stack knows fields. A stack with one input gets the whole context as that input. One with
more, or one that was trained on bare questions, gets each field from a Jinja template over the document's own fields,
`{{context}}` (the harness's prompt, solved examples included) and `{{doc}}` (the whole document):

    {"question": "{{question}}", "options": "{{choices.text | join('\\n')}}"}

This module imports lm_eval: import it inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cairn import prompts
from cairn.engines.base import Engine, ScoreRequest, require
from cairn.errors import ConfigError, EngineError, InputError, did_you_mean
from cairn.evaluation.harness_lm import HarnessModel, in_chunks, score_sequences, takes_ids
from cairn.models.tokenization import completion_ids, prompt_ids
from cairn.stacks.runner import Runner, check_inputs
from cairn.stacks.spec import StackSpec
from cairn.stacks.trace import Trace

__all__ = ["HarnessStack", "field_templates"]

_SHRINK = 0.8  # of an input that is too long, kept at each attempt
_SHORTEST = 16  # characters below which no more is cut


def field_templates(spec: StackSpec, given: Mapping[str, str]) -> dict[str, str]:
    """Returns a template for each input of a stack.

    Args:
        given: those of the user; none are needed if the stack has one input.

    Raises:
        ConfigError: a template is for no input, an input has none, or Jinja cannot read one: all faults at once.
    """
    from jinja2 import Environment, TemplateSyntaxError

    allowed = ", ".join(spec.inputs)
    faults = [
        f"harness.{name}: the stack has no such input{did_you_mean(name, spec.inputs)}, allowed: {allowed}"
        for name in given
        if name not in spec.inputs
    ]
    found = {**({spec.inputs[0]: "{{context}}"} if len(spec.inputs) == 1 else {}), **given}
    for name in spec.inputs:
        if name not in found:
            faults.append(f"harness.{name}: no template, and the stack has {len(spec.inputs)} inputs: {allowed}")
            continue
        try:
            Environment(autoescape=False).parse(found[name])
        except TemplateSyntaxError as error:
            faults.append(f"harness.{name}: {error.message}, in {found[name]!r}")
    if faults:
        raise ConfigError(spec.name, faults, next="give --harness FIELD='{{context}}' for each input")
    return {name: found[name] for name in spec.inputs}


@dataclass(frozen=True)
class _Known:
    """What a stack made of one input: its fields with the hand-offs, characters cut off the input, and the run."""

    fields: dict[str, str]
    cut: int
    trace: Trace


class HarnessStack(HarnessModel):
    """A stack behind an engine.

    Generation tasks run the whole chain with the sampling of its own stages: what a task says about temperature and
    length is not for them, its stop texts are.

    Args:
        spec: the stack.
        engine: holds its adapters.
        templates: input field -> Jinja template, see the module; may be empty for a stack with one input.
        wave: questions that go through the stages together.

    Raises:
        ConfigError: see `field_templates`. EngineError: see `Runner`.
    """

    def __init__(
        self, spec: StackSpec, engine: Engine, templates: Mapping[str, str] | None = None, *, wave: int = 64
    ) -> None:
        from jinja2 import Environment, StrictUndefined

        stage = spec.stage(spec.answer_stage)
        super().__init__(engine, adapter=stage.adapter_name)
        self.spec, self.stage, self._wave = spec, stage, wave
        self.templates = field_templates(spec, templates or {})
        jinja = Environment(autoescape=False, undefined=StrictUndefined, keep_trailing_newline=True)
        self._compiled = {name: jinja.from_string(text) for name, text in self.templates.items()}
        self._runner = Runner(spec, engine, wave=wave)
        self._handoffs: dict[tuple[str, ...], _Known] = {}
        self._chains: dict[tuple[str, ...], _Known] = {}

    def inputs(self, context: str, doc: Mapping[str, Any]) -> dict[str, str]:
        """Returns the input fields for one request.

        Raises:
            InputError: a template reads what the document does not have, or gives no text.
        """
        from jinja2 import UndefinedError

        known = {**doc, "doc": doc, "context": context}
        found = {}
        for name, template in self._compiled.items():
            try:
                found[name] = template.render(known).strip()
            except UndefinedError as error:
                raise InputError(
                    f"the template of input {name!r} does not fit this task ({error.message})",
                    value=self.templates[name], allowed=", ".join(["context", "doc", *doc]),
                ) from None  # fmt: skip
        if not all(found.values()):
            raise InputError(
                "this task gives the stack no text to read", value=found,
                next="score the base instead: the task asks how likely whole sentences are",
            )  # fmt: skip
        check_inputs(self.spec, found)
        return found

    def details(self, context: str, doc: Mapping[str, Any]) -> dict[str, Any]:
        """Returns inputs and hand-offs for the log of an item."""
        key = tuple(self.inputs(context, doc).values())
        known = self._chains.get(key) or self._handoffs.get(key)
        if known is None:
            return {}
        stages = {name: value for name, value in known.fields.items() if name not in self.spec.inputs}
        return {
            "inputs": dict(zip(self.spec.inputs, key, strict=True)), "handoffs": stages, "characters_cut": known.cut,
            "violations": known.trace.violations,
        }  # fmt: skip

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Returns (log-probability, greedy) of each continuation as the answer stage's output, given the hand-offs.

        Raises:
            EngineError: the answer stage is a rule, or runs more than once, so that an answer has no likelihood; or the
                engine has no log-probabilities.
            InputError: see `inputs`.
        """
        require(self.engine, "logprobs")
        if self.stage.by == "rule" or self.stage.kind != "once":
            raise EngineError(
                "choices are scored by the answer stage's log-likelihood, and this one has none",
                value=f"{self.stage.name}: {self.stage.by}, {self.stage.kind}", allowed="a model, kind: once",
                next="take a generation task",
            )  # fmt: skip
        known = self._known(requests, self._handoffs, whole=False)
        pairs, texts = [], []
        for request, one in zip(requests, known, strict=True):
            (call,) = self.spec.calls(self.stage, one.fields)
            pairs.append(request.args)
            texts.append((call.prompt, prompts.completion_text(request.args[1])))
        if takes_ids(self.engine):
            tokenizer = self.engine.tokenizer
            sequences = [
                self.fitted(prompt_ids(tokenizer, prompt), completion_ids(tokenizer, text)[:-1], pair)
                for (prompt, text), pair in zip(texts, pairs, strict=True)
            ]
            scores = score_sequences(self.engine, sequences, self.adapter)
        else:
            scores = in_chunks(
                self.engine.loglikelihood, [ScoreRequest(prompt, text, self.adapter) for prompt, text in texts], None
            )
        return [(score.logprob, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Refuses: a stack answers, it gives no probability to whole texts.

        Raises:
            EngineError: always.
        """
        raise EngineError("a stack does not score whole texts", value=self.spec.name, next="score its base instead")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns what the chain writes, cut at the task's stop texts."""
        outputs = []
        for request, one in zip(requests, self._known(requests, self._chains, whole=True), strict=True):
            calls = one.trace.stage(self.stage.name).calls
            raw = self.stage.kind == "once" and self.stage.by == "model" and calls
            text = calls[-1].output if raw else one.trace.answer
            stops = request.args[1].get("until") or []
            for stop in [stops] if isinstance(stops, str) else stops:
                text = text.split(stop)[0] if stop else text
            outputs.append(text)
        return outputs

    def _known(
        self, requests: Sequence[Any], cache: dict[tuple[str, ...], _Known], *, whole: bool
    ) -> list[_Known]:
        """Returns what the stack made of each request; equal inputs are run once, now or earlier."""
        inputs = [self.inputs(request.args[0], request.doc) for request in requests]
        keys = [tuple(one.values()) for one in inputs]
        todo = {key: one for key, one in zip(keys, inputs, strict=True) if key not in cache}
        names = list(todo)
        for start in range(0, len(names), self._wave):
            chunk = names[start : start + self._wave]
            cache.update(zip(chunk, self._run([todo[key] for key in chunk], whole), strict=True))
            if self.progress:
                self.progress(len(requests) * min(start + self._wave, len(names)) // len(names), len(requests))
        for key in dict.fromkeys(keys):
            if cache[key].cut:
                self.counts["contexts_cut"] += 1
                self.counts["characters_cut"] += cache[key].cut
        return [cache[key] for key in keys]

    def _run(self, inputs: Sequence[dict[str, str]], whole: bool) -> list[_Known]:
        try:
            return self._made(inputs, whole)
        except InputError:  # one is too long: each by itself
            return [self._shrunk(one, whole) for one in inputs]

    def _made(self, inputs: Sequence[dict[str, str]], whole: bool, cut: int = 0) -> list[_Known]:
        names = [stage.name for stage in self.spec.stages]
        late = {} if whole else {name: "-" for name in names[names.index(self.stage.name) :]}  # not run
        found = []
        for one, trace in zip(inputs, self._runner.run(inputs, given=[late] * len(inputs)), strict=True):
            handoffs = {record.name: record.value for record in trace.stages if record.name not in late}
            found.append(_Known({**one, **handoffs}, cut, trace))
        return found

    def _shrunk(self, inputs: dict[str, str], whole: bool) -> _Known:
        """Runs one question, its longest input cut on the left, at a space, until every stage's prompt fits."""
        first: InputError | None = None
        name = max(inputs, key=lambda field: len(inputs[field]))
        text = inputs[name]
        while True:
            try:
                return self._made([{**inputs, name: text}], whole, len(inputs[name]) - len(text))[0]
            except InputError as error:
                first = first or error
                kept = text[len(text) - int(len(text) * _SHRINK) :]
                text = kept[kept.find(" ") + 1 :].strip()
                if len(text) < _SHORTEST:
                    raise first from None
