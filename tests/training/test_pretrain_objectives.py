"""Every objective and schedule through the whole of pretraining: killed and resumed, it ends with the same weights."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cairn import files
from cairn.config import load_config, parse_config, save_config
from cairn.data.teacher import EngineTeacher
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import ArtifactError, CheckpointError, ConfigError, EngineError, TokenizerError
from cairn.models.tokenization import train_bpe
from cairn.training import pretrain as module
from cairn.training import teacher_logits
from cairn.training.objectives import NextToken
from cairn.training.pretrain import PretrainRecipe, pretrain
from cairn.training.pretrain_batches import PretrainBatches
from cairn.verbs import pretrain as verb

WORDS = "the a red old boat hill man sees takes puts under over and lamp near small river".split()
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """Half of such a small run is waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "fsync_path", lambda path: None)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory, quick_disk):
    """Text, a tokenizer, and a teacher that has it."""
    folder = tmp_path_factory.mktemp("home")
    draw = random.Random(5)
    texts = [" ".join(draw.choices(WORDS, k=40)) + "." for _ in range(60)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = train_bpe(texts, 330)
    tokenizer.save_pretrained(folder / "tokenizer")
    run(folder, "teacher", steps=2)
    torch.manual_seed(1)
    llama = LlamaConfig(  # its table is padded, as those of many public models are
        vocab_size=336, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder


def recipe(home, **changes):
    return parse_config(PretrainRecipe, {
        "recipe": "pretrain", "name": "tiny", "seed": 3, "steps": 6, "sequence_length": 32, "batch_rows": 4,
        "tokenizer": {"source": str(home / "tokenizer")},
        "data": {"sources": [{"name": "words", "path": str(home / "text.jsonl"), "licence": "made by a test"}]},
        "model": {"preset": "1m", "changes": SHAPE},
        "optimizer": {"kind": "muon"}, "samples": [], "device": "cpu",
        "loop": {"autocast": "none", "log_every": 1, "checkpoint_every": 2},
        **changes,
    }, "recipe.yaml")  # fmt: skip


def run(home, name, teacher=None, **changes):
    said = []
    pretrain(recipe(home, **changes), home / name, recipe_folder=home, teacher=teacher, say=said.append)
    return load_file(home / name / "model" / "model.safetensors"), losses(home / name), said


def losses(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        row["step"]: {key: value for key, value in row.items() if key.endswith("loss") or key == "divergence"}
        for row in rows if "loss" in row
    }


class Power(Exception):
    """It goes out."""


@pytest.fixture
def cut(monkeypatch):
    """Makes the power go out while a step's batch is made."""

    def at(step):
        whole = PretrainBatches.batch

        def batch(self, number):
            if number == step:
                raise Power
            return whole(self, number)

        monkeypatch.setattr(PretrainBatches, "batch", batch)

    yield at


VARIANTS = {
    "multi_token": {
        "objective": {"kind": "multi_token", "ahead": 2, "curriculum": "forward"},
        "dropout": {"kind": "triangle", "rate": 0.3, "cycles": 2},
        "averaging": {"kind": "latest", "count": 3, "every": 2},
    },
    "hybrid": {"objective": {"kind": "hybrid"}, "averaging": {"kind": "ema", "decay": 0.5}},
    "next_thought": {
        "objective": {"kind": "next_thought", "span": 4},
        "dropout": {"kind": "early", "rate": 0.2, "share": 0.5},
        "length_warmup": {"start": 8, "share": 0.5},
    },
    "forward": {"objective": {"kind": "distill", "teacher": "teacher/model", "top_k": 8, "weight_end": 1.0},
                "length_warmup": {"start": 16, "share": 0.6}},
    "bytes": {"tokenizer": {"kind": "bytes"}, "model": {"preset": "1m", "changes": {**SHAPE, "byte_pooling": {
        "rule": "learned", "stride": 4, "local_size": 16, "encoder_layers": 1, "decoder_layers": 1}}}},
    "bytes_fitted": {"tokenizer": {"kind": "bytes"}, "model": {"preset": "1m", "changes": {**SHAPE, "byte_pooling": {
        "rule": "entropy", "stride": 4, "local_size": 16, "encoder_layers": 1, "decoder_layers": 1}}}},
    "reverse": {"objective": {"kind": "distill", "teacher": "llama", "divergence": "reverse",
                              "temperature": 2.0}},
    "early_exit": {
        "objective": {"kind": "early_exit", "exits": "rotating", "dropout": 0.5, "dropout_curriculum": "linear"},
        "model": {"preset": "1m", "changes": {**SHAPE, "num_hidden_layers": 3,
                                              "early_exit": {"layers": [1, 2], "norm": "own"}}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_killed_and_resumed_it_ends_with_the_same_weights(home, cut, monkeypatch, name):
    straight, expected, _ = run(home, f"{name}-straight", **VARIANTS[name])
    cut(3)
    with pytest.raises(Power):
        run(home, f"{name}-cut", **VARIANTS[name])
    assert sorted(losses(home / f"{name}-cut")) == [1, 2, 3]  # step 3 was made, its checkpoint was not
    monkeypatch.undo()
    torch.manual_seed(99)
    resumed, found, _ = run(home, f"{name}-cut", **VARIANTS[name])
    assert resumed.keys() == straight.keys() and all(torch.equal(resumed[key], straight[key]) for key in resumed)
    assert found == expected and sorted(found) == [1, 2, 3, 4, 5, 6]
    states = [torch.load(home / f"{name}-{way}" / "checkpoints" / "step-00000006" / "state.pt") for way in
              ("straight", "cut")]  # fmt: skip
    assert same(*[{key: state[key] for key in ("model", "optimizers", "rng")} for state in states])
    assert same(states[0].get("along"), states[1].get("along"))
    assert all(row.get("model_loss", 0) > 0 for row in found.values()) == (name == "bytes")


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_heads_are_for_training_only_unless_asked_for(home):
    settings = {"kind": "multi_token", "ahead": 1}
    run(home, "heads-gone", objective=settings, steps=2)
    assert not list((home / "heads-gone" / "model").glob("objective*"))
    plain, _, _ = run(home, "plain", steps=2)
    kept, _, said = run(home, "heads-kept", objective={**settings, "keep_heads": True}, steps=2)
    assert kept.keys() == plain.keys()
    assert any("and 2,048 of training heads" in line for line in said)
    heads = load_file(home / "heads-kept" / "model" / "objective_heads.safetensors")
    assert set(heads) == {"0.inner.weight", "0.outer.weight"} and heads["0.outer.weight"].abs().sum() > 0
    assert json.loads((home / "heads-kept" / "model" / "objective.json").read_text())["ahead"] == 1
    manifest = json.loads((home / "heads-kept" / "manifest.json").read_text())
    assert "model/objective_heads.safetensors" in manifest["files"]
    for name in ("heads-gone", "heads-kept"):
        model = AutoModelForCausalLM.from_pretrained(home / name / "model")
        assert model.num_parameters() == 330 * 32 + 2 * (4 * 32 * 32 - 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32 + 2 * 8) + 32


def test_averages_change_what_is_saved_and_not_the_training(home):
    held = {"data": {**recipe(home).data.model_dump(), "validation": [
        {"name": "held", "path": str(home / "text.jsonl"), "licence": "made by a test", "max_bytes": 500}]}}
    plain, expected, _ = run(home, "not-averaged", **held)
    ours, found, said = run(home, "averaged", averaging={"count": 2, "every": 1}, **held)
    assert found == expected
    assert any(not torch.equal(ours[key], plain[key]) for key in plain)
    assert any(line.startswith("averaged weights: averaged_bits_per_byte/held") for line in said)
    assert '"averaged_bits_per_byte/held"' in (home / "averaged" / "metrics.jsonl").read_text()


def test_saved_configuration_has_the_models_own_dropout(home):
    run(home, "dropped", dropout={"kind": "late", "rate": 0.4, "share": 0.5}, steps=2)
    saved = json.loads((home / "dropped" / "model" / "config.json").read_text())
    assert (saved["attention_dropout"], saved["hidden_dropout"]) == (0.0, 0.0)


def test_short_rows_hold_the_tokens_of_long_ones(home, monkeypatch):
    """And a forward pass takes as many more of them."""
    seen, passes = {}, []
    whole, loss = PretrainBatches.batch, NextToken.__call__
    monkeypatch.setattr(NextToken, "__call__", lambda self, model, batch: passes.append(batch["labels"].shape)
                        or loss(self, model, batch))  # fmt: skip

    def batch(self, step):
        made = whole(self, step)
        seen.setdefault(self.name, []).append(made["input_ids"])
        return made

    monkeypatch.setattr(PretrainBatches, "batch", batch)
    for name, changes in (("full", {}), ("short", {"length_warmup": {"start": 8, "share": 0.6}})):
        monkeypatch.setattr(PretrainBatches, "name", name, raising=False)
        passes.clear()
        run(home, f"rows-{name}", loop={"autocast": "none", "micro_rows": 2}, **changes)
    assert passes == [(8, 8)] * 4 + [(4, 16)] * 4 + [(2, 32)] * 4
    assert [rows.shape for rows in seen["short"]] == [(16, 8)] * 2 + [(8, 16)] * 2 + [(4, 32)] * 2
    assert all((a.ravel() == b.ravel()).all() for a, b in zip(seen["full"], seen["short"], strict=True))


# bad input -----------------------------------------------------------------------------------------------------------


def test_contradictions_are_one_error_before_anything_is_read(home, tmp_path):
    with pytest.raises(ConfigError) as error:
        recipe(
            tmp_path, tokenizer={"vocab_size": 400}, sequence_length=96, length_warmup={"start": 20},
            averaging={"count": 4, "every": 100}, dropout={"kind": "linear_up"}, loop={"compile": True},
            objective={"kind": "multi_token", "ahead": 16},
            model={"preset": "1m", "changes": {**SHAPE, "attention_dropout": 0.1, "byte_pooling": {"rule": "space"}}},
        )  # fmt: skip
    text = str(error.value)
    for fault in (
        "model.changes.byte_pooling pools bytes, and tokenizer.kind is bpe",
        "sequence_length: 96, allowed: at most the model's max_position_embeddings (64)",
        "length_warmup.start: 20, allowed: sequence_length (96) halved",
        "averaging: 4 states 100 steps apart need 301 steps, allowed: at most steps (6)",
        "dropout and model.changes.attention_dropout both set the same rate",
        "dropout.kind: linear_up with loop.compile compiles anew at every step",
    ):
        assert fault in text


@pytest.mark.parametrize(
    ("objective", "fault"),
    [
        ({"kind": "multi_token", "ahead": 8}, "objective.ahead: 8, allowed: less than the shortest row (8 tokens)"),
        ({"kind": "next_thought", "span": 9}, "objective.span: 9, allowed: less than the shortest row (8 tokens)"),
        ({"kind": "hybrid", "masked_share": 0.1}, "0.1 of 4 rows leaves no masked or no causal row"),
        ({"kind": "hybrid", "random_share": 0.8, "kept_share": 0.4}, "are more than all hidden tokens"),
        ({"kind": "multitoken"}, "multitoken"),
    ],
)  # fmt: skip
def test_objectives_that_do_not_fit_are_refused(home, objective, fault):
    with pytest.raises(ConfigError) as error:
        recipe(home, objective=objective, length_warmup={"start": 8})
    assert fault in str(error.value)


def test_schedule_longer_than_the_data_is_refused_before_any_step(home):
    with pytest.raises(ConfigError, match=r"read the stream of [\d,]+ tokens \d+\.\d+ times, allowed: data.max_epochs "
                                          r"= 1. Next: --set steps=\d+"):
        run(home, "too-long", steps=1000)
    assert not (home / "too-long" / "metrics.jsonl").exists()
    data = {**recipe(home).data.model_dump(), "max_epochs": 3}
    run(home, "repeated", steps=3, batch_rows=64, data=data)


def test_settings_of_before_have_the_same_fingerprint(home):
    """A run that was begun before a setting existed goes on: at its default it is no part of the record."""
    plain = recipe(home).model_dump(mode="json")
    assert not {"objective", "dropout", "length_warmup", "averaging"} & set(plain)
    assert not {"max_epochs", "written", "order"} & set(plain["data"])
    full = recipe(home, **VARIANTS["multi_token"])
    assert parse_config(PretrainRecipe, full.model_dump(mode="json"), "again") == full


def test_resume_with_another_objective_is_refused(home):
    run(home, "changed", steps=2)
    with pytest.raises(ConfigError, match="made with other settings .*objective.kind was None, is 'multi_token'"):
        run(home, "changed", steps=2, objective={"kind": "multi_token"})


def test_broken_gradient_stops_at_the_last_good_checkpoint_and_nothing_is_lost(home, monkeypatch):
    straight, expected, _ = run(home, "sound")
    whole = module.build_objective

    class Broken:
        heads, keep_heads, calls = None, False, 0

        def __init__(self, inner):
            self.inner, self.prepare = inner, inner.prepare

        def __call__(self, model, batch):
            self.calls += 1
            loss, metrics = self.inner(model, batch)
            if self.calls == 4:  # a finite loss without a finite gradient
                loss = loss + (model.get_output_embeddings().weight.sum() * 0).sqrt()
            return loss, metrics

    monkeypatch.setattr(module, "build_objective", lambda *a, **k: Broken(whole(*a, **k)))
    with pytest.raises(EngineError, match=r"gradient is not finite at step 4: nan.*goes on from the last good "
                                          r"checkpoint, .*step-00000002; if it comes again, lower the learning rate"):
        run(home, "broken")
    monkeypatch.undo()
    resumed, found, _ = run(home, "broken")
    assert all(torch.equal(resumed[key], straight[key]) for key in straight) and found == expected


def test_weights_that_are_not_finite_are_not_checkpointed(home, monkeypatch):
    step = module.build_optimizers

    def build(model, config):
        made = step(model, config)
        whole = made.step

        def jump(factor):
            whole(factor)
            with torch.no_grad():
                next(iter(model.parameters())).mul_(torch.inf)

        made.step = jump
        return made

    monkeypatch.setattr(module, "build_optimizers", build)
    with pytest.raises(EngineError, match="a weight is not finite at step 1: nan"):
        run(home, "jumped", loop={"autocast": "none", "checkpoint_every": 1})
    assert not list((home / "jumped" / "checkpoints").glob("*"))


# teachers ------------------------------------------------------------------------------------------------------------


def test_teacher_of_another_tokenizer_is_refused_before_the_shards(home):
    with pytest.raises(TokenizerError, match="embedded:base has another tokenizer.*Next: set tokenizer.source=embedded"
                                             ":base.*data.written"):
        run(home, "foreign", objective={"kind": "distill", "teacher": "embedded:base"})
    assert not (home / "foreign" / "shards").exists()


def test_teacher_with_a_short_context_is_refused(home):
    changes = {**SHAPE, "max_position_embeddings": 128}
    with pytest.raises(CheckpointError, match="context is shorter than the rows: 64. Allowed: at least sequence_le"):
        run(home, "long", sequence_length=96, model={"preset": "1m", "changes": changes},
            objective={"kind": "distill", "teacher": "teacher/model"})


def test_teachers_logits_are_made_once_checked_and_shared(home, monkeypatch):
    settings = {"kind": "distill", "teacher": "teacher/model", "top_k": 4, "cache": "logits", "teacher_dtype":
                "float32"}  # fmt: skip
    run(home, "cached-1", objective=settings, steps=2)
    file = home / "logits" / "rows-00000.npy"
    made, stamp = np.load(file), file.stat().st_mtime_ns
    teacher = AutoModelForCausalLM.from_pretrained(home / "teacher" / "model", dtype=torch.float32)
    from cairn.data.loader import PackedLoader
    from cairn.data.shards import ShardSet

    tokenizer = AutoTokenizer.from_pretrained(home / "tokenizer")
    loader = PackedLoader(ShardSet.open(home / "cached-1" / "shards", tokenizer), 32, 4, 3)
    with torch.no_grad():
        row = torch.from_numpy(loader.block(5)[None, :-1].astype(np.int64))
        top, ids = torch.log_softmax(teacher(row).logits[0], -1).topk(4)
    assert (made["ids"][5] == ids.numpy()).all() and np.allclose(made["logprobs"][5], top.numpy(), atol=4e-3)
    assert np.allclose(made["rest"][5], (1 - top.exp().sum(-1)).log().numpy(), atol=4e-3)
    other = {**settings, "weight": 0.9}
    run(home, "cached-2", objective=other, steps=2, seed=4)  # the weight is the student's: same logits
    assert file.stat().st_mtime_ns == stamp
    with pytest.raises(ArtifactError, match="logits of another teacher, other rows or other settings"):
        run(home, "cached-3", objective={**settings, "temperature": 2.0}, steps=2)
    made["rest"][0] = 0
    np.save(file, made)
    with pytest.raises(ArtifactError, match="teacher's logits are damaged.*Next: delete"):
        run(home, "cached-4", objective=settings, steps=2)


def test_a_killed_teacher_goes_on_where_it_was(home, monkeypatch):
    settings = {"objective": {"kind": "distill", "teacher": "teacher/model", "top_k": 4}}
    straight, expected, said = run(home, "read-1", **settings)
    assert any("teacher: " in line and "reads 24 rows of 32 tokens" in line for line in said)  # no more than 6 x 4
    monkeypatch.setattr(teacher_logits, "_ROWS_EACH", 10)
    whole, calls = teacher_logits._read_rows, []

    def read(model, loader, blocks, *rest):
        calls.append(len(blocks))
        if len(calls) == 2:
            raise Power
        return whole(model, loader, blocks, *rest)

    monkeypatch.setattr(teacher_logits, "_read_rows", read)
    with pytest.raises(Power):
        run(home, "read-2", **settings)
    resumed, found, _ = run(home, "read-2", **settings)
    assert calls == [10, 10, 10, 4]
    assert found == expected and all(torch.equal(resumed[key], straight[key]) for key in straight)


def written(home, **changes):
    return {"sources": [], "written": {
        "teacher": {"kind": "recorded", "path": "unused"}, "licence": "made by a test", "documents": 40,
        "prompts": {"name": "words", "path": str(home / "text.jsonl"), "licence": "made by a test"},
        "prompt_characters": 30, **changes}}  # fmt: skip


def test_a_teacher_of_any_tokenizer_writes_the_text(home, tmp_path):
    """Stopped half-way, the answers that are there are not asked for again."""
    engine = FakeEngine(lambda request: " sees the old river." * 8)
    data, teacher = written(home), EngineTeacher(engine, "fake", batch=4)
    with pytest.raises(ConfigError, match="40 texts are not written yet, and no teacher is given"):
        run(home, "written", data=data)
    broken = FakeEngine([" sees the old river." * 8] * 10)  # its script ends
    with pytest.raises(EngineError):
        run(home, "written", data=data, teacher=EngineTeacher(broken, "fake", batch=5))
    _, found, said = run(home, "written", data=data, teacher=teacher)
    assert len(engine.requests) == 30 and sorted(found) == [1, 2, 3, 4, 5, 6]
    texts, beginnings = (
        [json.loads(line)["text"] for line in file.read_text().splitlines()][:40]
        for file in (home / "written" / "written" / "text.jsonl", home / "text.jsonl")
    )
    assert all(whole.startswith(text[: text.index(" sees the old river. sees")]) for text, whole in
               zip(texts, beginnings, strict=True))  # fmt: skip
    assert any(line.startswith("written: 40 texts of 40 prompts (0 refused") for line in said)


def test_the_command_opens_the_recipes_teacher(home):
    """Here recorded answers: those of an earlier run give its text again."""
    first = EngineTeacher(FakeEngine(lambda request: f" {len(request.prompt)} boats." * 8), "fake")
    run(home, "told", data=written(home), teacher=first, steps=1)
    data = written(home, teacher={"kind": "recorded", "path": "told/written/answers.jsonl"})
    save_config(recipe(home, data=data, steps=1), home / "told.yaml")
    verb.pretrain(home / "told.yaml", home / "retold", [])
    texts = [(home / name / "written" / "text.jsonl").read_text() for name in ("told", "retold")]
    assert texts[0] == texts[1] and (home / "retold" / "model" / "model.safetensors").exists()


def test_written_text_that_cannot_be_made_is_refused(home):
    with pytest.raises(ConfigError, match="ask: 'Go on.' must hold {beginning} once"):
        recipe(home, data=written(home, ask="Go on."))
    with pytest.raises(ConfigError, match="sources: there is none, allowed: at least one, or data.written"):
        recipe(home, data={"sources": []})


@pytest.mark.slow
def test_the_50m_recipe_starts_and_goes_on_where_it_was(home, cut, monkeypatch, repository):
    """Its own shape, optimizer and schedule on a little local text: hub and GPU are all that is missing here."""
    local = {"name": "words", "path": "text.jsonl", "licence": "none: made by a test"}
    changes = [
        f"data={json.dumps({'sources': [local], 'max_epochs': 50})}", "tokenizer.vocab_size=330", "steps=3",
        "tokenizer.train_bytes=20000", "sequence_length=16", "batch_rows=2", "samples=[]", "device=cpu",
        f"loop={json.dumps({'log_every': 1, 'eval_every': 0, 'checkpoint_every': 1})}",
    ]  # fmt: skip
    loaded = load_config(PretrainRecipe, repository / "recipes" / "stlm-50m.yaml", changes)
    out = home / "stlm-50m"
    cut(2)
    with pytest.raises(Power):
        pretrain(loaded, out, recipe_folder=home, say=lambda text: None)
    monkeypatch.undo()
    assert sorted(losses(out)) == [1, 2]
    pretrain(loaded, out, recipe_folder=home, say=lambda text: None)
    assert sorted(losses(out)) == [1, 2, 3]
    shape = json.loads((out / "model" / "config.json").read_text())
    assert (shape["num_hidden_layers"], shape["hidden_size"], shape["vocab_size"]) == (13, 576, 330)
