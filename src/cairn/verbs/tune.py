"""`cairn tune`: conversations in, a model that can be talked to out.

    recipe ─ conversations read, checked, as ids ─ held out ─ training ─┬─ OUT/adapter   LoRA: PEFT folder + tokenizer
                  (before any training)                                 └─ OUT/model     whole model folder
    OUT/result.json      every number          OUT/manifest.json   last: where it is, the run is whole
    --ask "Hello"        after that, or at once where the run is whole: one conversation, a turn for each --ask
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cairn.config import StrictModel, load_config, read_yaml
from cairn.errors import ConfigError
from cairn.files import sha256_json, write_json

if TYPE_CHECKING:
    from cairn.engines.chat_engine import ChatEngine
    from cairn.training.tune_plan import TuneRecipe

__all__ = ["ask", "open_chat", "tune", "tune_recipe"]

Say = Callable[[str], Any]


def tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe of kind `tune`.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME.")] = None,
    questions: Annotated[
        list[str] | None, typer.Option("--ask", metavar="TEXT", help="Then say this to it; repeatable, turn by turn.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
) -> None:
    """Tune a base on instructions, so that it can be talked to.

    The data may be Alpaca's, Dolly's, OpenAssistant's, lists of messages or any columns, from a file or the Hugging
    Face hub. The loss looks at the assistant's turns alone; the chat template is written into the tokenizer, so that
    what a server reads is what was trained. The result is a Hugging Face model folder (OUT/model) and, for the method
    lora, a PEFT adapter (OUT/adapter):

      recipe: tune
      name: mine
      data: {sources: [{name: mine, licence: mine, path: chats.jsonl}], validation: 50}
      method: lora                     # or full
      training: {epochs: 3, lora: {rank: 16}}

    Killed at any moment, the same command goes on where it was, and ends with the same weights.

    Examples:

      cairn tune recipes/instruct-sample.yaml --ask "Name three things that float."
      cairn tune recipes/instruct-dolly-oasst.yaml --out runs/instruct
      cairn tune recipes/instruct-alpaca-lora.yaml --set training.epochs=1 --set base=runs/base/model
    """
    from cairn.training.tune_plan import TuneRecipe

    loaded = load_config(TuneRecipe, recipe, overrides or [])
    target = out or Path("runs") / loaded.name
    if not (questions and _is_whole(loaded, target)):  # to talk to it, the data need not be read again
        tune_recipe(loaded, target, recipe_folder=recipe.parent, say=typer.echo)
    if questions:
        engine, adapter = open_chat(target, device=loaded.device, system=loaded.data.system)
        for asked, answer in zip(questions, ask(engine, adapter, questions, new_tokens, temperature), strict=True):
            typer.echo(f"\nUser: {asked}\nAssistant: {answer}")


def tune_recipe(
    recipe: TuneRecipe, out: str | Path, *, recipe_folder: str | Path = ".", say: Say = lambda text: None
) -> dict[str, Any]:
    """Tunes a model as a recipe says, or finds it tuned already.

    Args:
        recipe: what to do.
        out: run folder.
        recipe_folder: where relative paths of the recipe start.
        say: takes lines for the reader.

    Returns:
        What result.json holds.

    Raises:
        ConfigError: nothing is left to train on, or `out` holds a run of other settings, data or base.
        DataError, MissingExtraError: the data cannot be used.
        CheckpointError, TokenizerError: the base cannot be used, or its chat template cannot be trained on.
        StorageError, EngineError, KeyboardInterrupt: as `training.tune.tune_model`.
    """
    from transformers import AutoConfig

    from cairn.bases import base_folder, load_base, pick_device, pick_precision
    from cairn.data.chat_template import prepare_chat_tokenizer
    from cairn.engines.decoding import end_ids
    from cairn.identity import base_identity
    from cairn.runs import RunFolder
    from cairn.training.tune import tune_model

    out = Path(out)
    local = Path(recipe_folder) / recipe.base  # a base beside the recipe
    base = str(local) if not recipe.base.startswith("embedded:") and (local / "config.json").is_file() else recipe.base
    device = pick_device(recipe.device)
    model, tokenizer = load_base(base, dtype="float32", device=device)
    prepare_chat_tokenizer(tokenizer, recipe.template, end_ids(model, tokenizer))
    training, held_out, facts = _read(recipe, tokenizer, model.config, Path(recipe_folder), say)
    config = recipe.training.resolved(recipe.method, sum(pair.tokens for pair in training))
    config = config.model_copy(update={"precision": pick_precision(config.precision, device)})
    settings = _TuneRun(
        recipe=recipe.model_dump(mode="json"), precision=config.precision, base=base_identity(base),
        template=str(tokenizer.chat_template), data_sha256=facts["sha256"],
    )  # fmt: skip
    run = RunFolder(out, settings, seed=config.seed)
    if run.finished:
        say(f"tuned already: {out}")
        return json.loads((out / "result.json").read_text(encoding="utf-8"))
    stored = AutoConfig.from_pretrained(str(base_folder(base))).dtype or model.dtype
    card = _card(recipe, facts)
    said = f"{recipe.method} on {base}, {config.precision}"
    say(f"{recipe.name}: {len(training):,} conversations, {len(held_out):,} held out; {said}")
    result = tune_model(
        model, tokenizer, training, config, run, method=recipe.method, validation=held_out,
        samples=[_asked(recipe.data.system, text) for text in recipe.samples], base=settings.base, dtype=stored,
        card=card, title=f"tune {recipe.name}",
    )  # fmt: skip
    made = ["adapter"] if recipe.method == "lora" else ["model"]
    if recipe.method == "lora" and recipe.merge:
        _merge(base, tokenizer, out, stored, card)
        made.append("model")
    whole = {"name": recipe.name, "base": settings.base, "data": facts, **asdict(result), "made": made,
             "settings": config.model_dump(mode="json")}  # fmt: skip
    write_json(out / "result.json", whole)
    files = [str(file.relative_to(out)) for name in made for file in sorted((out / name).iterdir()) if file.is_file()]
    run.finish(["result.json", *files])
    before, after = result.validation_loss_before, result.validation_loss
    if before is not None and after is not None:
        say(f"held-out loss of an answer token: {before:.3f} nats before, {after:.3f} after")
    say(f"whole: {', '.join(str(out / name) for name in made)}")
    return whole


class _TuneRun(StrictModel):
    """Everything that decides the weights: two runs are the same if these are equal."""

    recipe: dict[str, Any]
    precision: str
    base: dict[str, Any]
    template: str
    data_sha256: str


def _is_whole(recipe: TuneRecipe, out: Path) -> bool:
    """Tells whether a folder holds a finished run of this recipe."""
    if not (out / "manifest.json").is_file():
        return False
    return read_yaml(out / "config.yaml").get("recipe") == recipe.model_dump(mode="json")


def _read(
    recipe: TuneRecipe, tokenizer: Any, model_config: Any, folder: Path, say: Say
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Returns training pairs, held-out pairs and facts of the data."""
    from cairn.data.chat import read_conversations
    from cairn.data.chat_template import chat_sequences
    from cairn.data.instructions import RowFault
    from cairn.training.tune import chat_pair

    data = recipe.data
    context = getattr(model_config, "max_position_embeddings", None)
    pairs: list[tuple[Any, list[Any]]] = []  # turns, sequences
    sources: list[dict[str, Any]] = []
    for source in data.sources:
        read = read_conversations(source, folder / (data.root or "."), data.seed)
        used, cut = 0, 0
        for chat in read.conversations:
            turns = chat.turns
            if data.system is not None and turns[0][0] != "system":
                turns = (("system", data.system), *turns)
            try:
                found = chat_sequences(tokenizer, turns, context)
            except RowFault as fault:
                read.faults[fault.kind] += 1
                read.first_fault = read.first_fault or f"row {chat.id}: {fault}"
                continue
            used += 1
            cut += sum(len(one.answers) for one in found) < sum(role == "assistant" for role, _ in turns)
            pairs.append((turns, [chat_pair(one) for one in found]))
        sources.append(
            {"name": source.name, "licence": source.licence, "conversations": used, "shortened": cut,
             "left_out": dict(read.faults), "passed_over": read.passed_over, "not_drawn": read.not_drawn}
        )  # fmt: skip
        left = sum(read.faults.values())
        say(f"{source.name}: {used:,} conversations" + (f", {cut:,} shortened to the context" if cut else "")
            + (f"; {left:,} left out, the first: {read.first_fault}" if left else ""))  # fmt: skip
    wanted = int(data.validation) if data.validation >= 1 else round(data.validation * len(pairs))
    if wanted >= len(pairs):
        raise ConfigError(
            "data.validation", [f"{data.validation:g} of {len(pairs)} conversations leaves none to train on"],
            next="hold fewer out with --set data.validation=0.1, or give more data",
        )  # fmt: skip
    places = set(random.Random(data.seed).sample(range(len(pairs)), wanted))
    held = {pairs[place][0] for place in places}
    training = [one for turns, made in pairs if turns not in held for one in made]  # nor the same words once more
    if not training:
        raise ConfigError("data", ["all conversations are the same as those held out"], next="give more data")
    held_out = [one for place in sorted(places) for one in pairs[place][1]]
    facts = {
        "sources": sources, "training": len(training), "held_out": len(held_out),
        "answers": sum(1 + sum(end > start for start, end in one.unscored) for one in training),
        "sha256": sha256_json([[list(map(list, turns)) for turns, _ in pairs], sorted(places)]),
    }  # fmt: skip
    return training, held_out, facts


def _asked(system: str | None, text: str) -> list[tuple[str, str]]:
    return [*([("system", system)] if system else []), ("user", text)]


def _merge(base: str, tokenizer: Any, out: Path, dtype: Any, card: str) -> None:
    """Writes OUT/model from the base and OUT/adapter; merges in float32 and rounds once."""
    from cairn.bases import load_base
    from cairn.engines.adapters import load_merged
    from cairn.training.tune import save_chat_model

    model, _ = load_base(base, dtype="float32", device="cpu")
    save_chat_model(load_merged(model, "chat", out / "adapter"), tokenizer, out / "model", dtype, card)


def _card(recipe: TuneRecipe, facts: dict[str, Any]) -> str:
    rows = "".join(f"| {one['name']} | {one['licence']} | {one['conversations']:,} |\n" for one in facts["sources"])
    return (
        f"# {recipe.name}\n\n{recipe.description or 'A model tuned on instructions.'}\n\nBase: `{recipe.base}`; "
        f"method: {recipe.method}; made by `cairn tune`. The chat template is in the tokenizer.\n\n"
        f"| data | licence | conversations |\n|---|---|---|\n{rows}"
    )


def open_chat(
    out: str | Path, *, device: str = "auto", dtype: str = "auto", system: str | None = None
) -> tuple[ChatEngine, str | None]:
    """Opens what a run of `cairn tune` left: its whole model, or its adapter on the base.

    Args:
        out: run folder.
        device, dtype: see `bases.pick_device`, `bases.pick_dtype`.
        system: the system message.

    Returns:
        The engine, and the name of the adapter to ask (None: the model itself).

    Raises:
        ConfigError: the run is not whole. CheckpointError, TokenizerError, AdapterError: as `TorchEngine`.
    """
    from transformers import AutoTokenizer

    from cairn.bases import load_base
    from cairn.engines.chat_engine import ChatEngine

    out = Path(out)
    if not (out / "manifest.json").is_file():
        raise ConfigError(str(out), ["no finished run of `cairn tune`"], next="cairn tune RECIPE.yaml --out FOLDER")
    if (out / "model").is_dir():
        return ChatEngine(str(out / "model"), system=system, device=device, dtype=dtype), None
    facts = json.loads((out / "result.json").read_text(encoding="utf-8"))
    model, _ = load_base(facts["base"]["name"], dtype=dtype, device=device)
    tokenizer = AutoTokenizer.from_pretrained(out / "adapter")
    adapters = {"chat": out / "adapter"}
    return ChatEngine(model, system=system, tokenizer=tokenizer, adapters=adapters), "chat"  # type: ignore[arg-type]


def ask(
    engine: ChatEngine, adapter: str | None, questions: Sequence[str], new_tokens: int = 128, temperature: float = 0.0
) -> list[str]:
    """Says one thing after the other in one conversation, and returns the answers.

    Raises:
        InputError: a question is empty, spells a special token, or the conversation is longer than the context.
    """
    from cairn.engines.base import Sampling
    from cairn.engines.chat_engine import ChatRequest

    history: list[tuple[str, str]] = []
    for number, text in enumerate(questions):
        sampling = Sampling(max_new_tokens=new_tokens, temperature=temperature, seed=number)
        (made,) = engine.generate([ChatRequest(text, adapter, sampling, history=tuple(history))])
        history += [("user", text), ("assistant", made.text.strip())]
    return [text for role, text in history if role == "assistant"]
