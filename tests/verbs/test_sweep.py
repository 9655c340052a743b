"""`cairn sweep`: budgets, same size, same text, and a sweep of seconds that is interrupted, resumed and extended."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cairn.cli import main
from cairn.config import load_config
from cairn.data.loader import PackedLoader
from cairn.data.shards import ShardSet
from cairn.errors import ConfigError, EngineError
from cairn.training.loop import LoopResult
from cairn.training.pretrain import PretrainRecipe
from cairn.verbs import sweep_runs
from cairn.verbs.sweep import sweep_recipe
from cairn.verbs.sweep_plan import plan_sweep, prepare_data, set_steps
from cairn.verbs.sweep_recipe import SweepRecipe, load_sweep
from cairn.verbs.sweep_runs import calibrate, read_pieces

WORDS = "the a red old boat hill man sees takes puts under over and lamp near small river größe".split()
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Writes texts, the baseline of two layers and a sweep over it; returns the sweep's path."""
    draw = random.Random(5)
    lines = [json.dumps({"text": " ".join(draw.choices(WORDS, k=60)) + "."}) for _ in range(60)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    held = [json.dumps({"text": " ".join(draw.choices(WORDS, k=count))}) for count in (40, 25, 60)]
    (folder / "held.jsonl").write_text("\n".join(held) + "\n")
    (folder / "other.txt").write_text("the lamp is near the old boat. " * 5)
    source = {"licence": "none: made by a test"}
    baseline = {
        "recipe": "pretrain", "name": "tiny", "steps": 6, "sequence_length": 32, "batch_rows": 4,
        "tokenizer": {"vocab_size": 330, "train_bytes": 20000},
        "data": {
            "sources": [{"name": "words", "path": "text.jsonl", **source}],
            "validation": [{"name": "held", "path": "held.jsonl", **source},
                           {"name": "other", "path": "other.txt", **source}],
            "order": "stream",
        },
        "model": {"preset": "1m", "changes": SMALL},
        "optimizer": {"kind": "adamw", "learning_rate": 0.003},
        "loop": {"autocast": "none", "log_every": 1, "checkpoint_every": 2}, "device": "cpu",
    }  # fmt: skip
    (folder / "baseline.yaml").write_text(yaml.safe_dump(baseline))
    sweep = {
        "recipe": "sweep", "name": "tiny", "baseline": "baseline.yaml", "budget": {"flops": 2.2e8}, "seeds": [0, 1],
        "variants": {"wide": {"model.changes.intermediate_size": 96}, "slow": {"optimizer.learning_rate": 1e-5}},
        "score": {"piece_bytes": 100, "resamples": 200}, "curve_points": 2,
        **changes,
    }  # fmt: skip
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return path


def faults_of(folder: Path, overrides: tuple[str, ...] = (), **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write_recipe(folder, **changes), overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("budget", "given"),
    [({"wall_clock_s": 5, "flops": 1e8}, "wall_clock_s, flops"), ({}, "none"),
     ({"flops": 1e8, "parameters": "baseline"}, "flops, parameters")],
)  # fmt: skip
def test_budgets_that_contradict_each_other_are_refused(tmp_path: Path, budget: dict[str, Any], given: str) -> None:
    said = faults_of(tmp_path, budget=budget)
    assert f"give exactly one of wall_clock_s, flops, parameters; given: {given}" in said


def test_what_would_make_variants_incomparable_is_refused_all_at_once(tmp_path: Path) -> None:
    said = faults_of(tmp_path, variants={
        "longer": {"steps": 100}, "luck": {"seed": 3}, "more": {"data.sources": []}, "baseline": {"loop.keep": 3},
    })  # fmt: skip
    for fault in ("longer: steps cannot differ: the budget decides", "luck: seed cannot differ",
                  "more: data.sources cannot differ: all variants read the same data", "'baseline' is the baseline's"):
        assert fault in said
    said = faults_of(tmp_path, variants={"odd": {"modle.preset": "5m"}, "same": {"optimizer.kind": "adamw"}})
    assert "odd: modle: unknown key (did you mean model?)" in said
    assert "same: the same run as baseline; allowed: a change" in said
    assert "set.steps contradicts the budget" in faults_of(tmp_path, set={"steps": 50})
    assert "there is no variant" in faults_of(tmp_path, variants={})
    assert "needs same_size" in faults_of(tmp_path, budget={"parameters": "baseline"})
    both = {"wide": {"model.changes.intermediate_size": 96}}
    assert "wide: model.changes.intermediate_size is set, and same_size changes it" in faults_of(
        tmp_path, variants=both, same_size={"dimension": "intermediate_size"})  # fmt: skip


def test_other_tokens_need_the_order_and_the_amounts_of_the_text_itself(tmp_path: Path) -> None:
    words = {"small": {"tokenizer.vocab_size": 360}}
    said = faults_of(tmp_path, ("baseline.data.order=shuffled", "baseline.data.total_tokens=1000"), variants=words)
    assert "data.order is 'shuffled', and small cut the text otherwise; allowed: stream" in said
    assert "data.total_tokens counts tokens, and small have others" in said
    assert "no 'hold' in the baseline's data.validation (did you mean held?)" in faults_of(
        tmp_path, score={"sources": ["hold"]})  # fmt: skip


def test_models_with_other_tokens_and_rows_read_the_same_text_in_the_same_order(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, variants={
        "more_words": {"tokenizer.vocab_size": 420}, "long_rows": {"sequence_length": 64, "batch_rows": 2},
    })  # fmt: skip
    recipe = load_sweep(path)
    folders = prepare_data(recipe, tmp_path / "run", lambda line: None)
    assert folders["long_rows"] == folders["baseline"] != folders["more_words"]  # made once for the same tokens
    from transformers import AutoTokenizer

    read = {}
    for name, one in recipe.recipes.items():
        tokenizer = AutoTokenizer.from_pretrained(folders[name] / "tokenizer")
        shards = ShardSet.open(folders[name] / "shards", tokenizer)
        loader = PackedLoader(shards, one.sequence_length, one.batch_rows, seed=1, order=one.data.order)
        assert loader.batch_size * loader.sequence_length == 128
        ids = np.concatenate([loader.batch(step)["input_ids"].ravel() for step in range(8)])
        read[name] = tokenizer.decode(ids, skip_special_tokens=True)
    assert read["long_rows"][200:1500] in read["baseline"]
    assert read["more_words"][800:1800] in read["baseline"]  # starts within a block of the same place


def test_the_same_flops_are_the_same_flops(tmp_path: Path) -> None:
    recipe = load_sweep(write_recipe(tmp_path))
    plans = set_steps(recipe, plan_sweep(recipe, prepare_data(recipe, tmp_path / "run", lambda line: None)), {})
    base, wide, slow = plans
    assert base.steps == slow.steps > wide.steps
    for plan in plans:
        spent = plan.as_json()["flops"]
        assert spent <= 2.2e8 < spent + plan.flops_per_token * plan.tokens_per_step
    with pytest.raises(ConfigError, match="wide: one step takes .* FLOPs, more than the budget"):
        small = recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"flops": 1e5})})
        set_steps(small, plans, {})
    with pytest.raises(ConfigError, match=r"passes over the text; allowed: 1 \(data.max_epochs\)"):
        big = recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"flops": 1e14})})
        set_steps(big, plans, {})


def test_a_plan_says_what_each_variant_would_get_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_recipe(tmp_path), tmp_path / "run"
    assert main(["sweep", str(path), "--out", str(out), "--plan"]) == 0
    said = capsys.readouterr().out
    assert "Equal compute: 220 MFLOPs" in said and "wide" in said and not (out / "runs").exists()
    assert main(["sweep", str(path), "--out", str(out), "--only", "wid"]) == 2
    assert "'wid' (did you mean wide?), allowed: baseline, wide, slow" in capsys.readouterr().err


def test_flops_that_the_account_does_not_know_are_refused_for_that_budget_only(tmp_path: Path) -> None:
    thought = {"ahead": {"objective": {"kind": "multi_token", "ahead": 2}}}
    recipe = load_sweep(write_recipe(tmp_path, variants=thought))
    folders = prepare_data(recipe, tmp_path / "run", lambda line: None)
    with pytest.raises(ConfigError, match="ahead: its FLOPs are not known: the account has no objective multi_token"):
        plan_sweep(recipe, folders)
    assert [plan.name for plan in plan_sweep(recipe, {"baseline": folders["baseline"]})] == ["baseline"]  # as --only
    other = recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"flops": None, "wall_clock_s": 1})})
    assert plan_sweep(other, folders)[1].flops_per_token is None


def test_parameters_are_brought_as_near_as_the_dimension_allows(tmp_path: Path) -> None:
    size = {"dimension": "intermediate_size", "multiple_of": 4, "tolerance": 0.02}
    variants = {
        "more_words": {"tokenizer.vocab_size": 400}, "one_layer": {"model.changes.num_hidden_layers": 1},
    }
    path = write_recipe(tmp_path, budget={"parameters": "baseline"}, same_size=size, variants=variants)
    recipe = load_sweep(path)
    folders = prepare_data(recipe, tmp_path / "run", lambda line: None)
    base, words, layer = set_steps(recipe, plan_sweep(recipe, folders), {})
    assert base.size == {} and base.steps == 6
    for plan, each in ((words, 2 * 3 * 32 * 4), (layer, 3 * 32 * 4)):  # parameters of one step of the dimension
        assert plan.size["difference"] == plan.parameters - base.parameters
        assert abs(plan.size["difference"]) <= each / 2
        assert plan.recipe.model.changes["intermediate_size"] == plan.size["is"]
    assert words.size["is"] < 48 < layer.size["is"]
    read = [plan.tokens * plan.bytes_per_token for plan in (base, words, layer)]
    assert read[2] == read[0] and abs(read[1] - read[0]) <= words.tokens_per_step * words.bytes_per_token / 2
    fewer = {"few": {"model.changes.num_hidden_layers": 1, "model.changes.hidden_size": 16}}
    tight = load_sweep(write_recipe(
        tmp_path, budget={"parameters": 20_000}, variants=fewer, same_size={**size, "dimension": "head_dim"}
    ))  # fmt: skip
    with pytest.raises(ConfigError, match=r"baseline: nearest to 20,000 parameters is head_dim 4 with .*: within"):
        plan_sweep(tight, prepare_data(tight, tmp_path / "run", lambda line: None))


def test_speed_is_measured_once_in_turns_and_steps_follow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(tmp_path, budget={"wall_clock_s": 0.9}, seeds=[0], calibration={"rounds": 3, "steps": 2})
    recipe = load_sweep(path)
    plans = plan_sweep(recipe, prepare_data(recipe, tmp_path / "run", lambda line: None))
    order: list[str] = []
    took = {"baseline": iter([0.1, 0.3, 0.1]), "wide": iter([0.2, 0.2, 0.2])}

    def run(recipe: PretrainRecipe, plan: Any, folder: Path, sweep: Any) -> LoopResult:
        assert not recipe.data.validation and recipe.loop.log_every == 1
        warm = plan.name not in order and f"{plan.name} warm" not in order
        assert recipe.steps == (4 if warm else 3)
        order.append(f"{plan.name} warm" if warm else plan.name)
        one = 9.0 if warm else next(took[plan.name])
        folder.mkdir(parents=True)
        rows = [{"step": step, "seconds": step * one + 1} for step in range(1, recipe.steps + 1)]  # the first is slow
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return LoopResult(recipe.steps, 0, 0.0, 0.0)

    monkeypatch.setattr(sweep_runs, "_pretrain", run)
    found = calibrate(recipe, plans, tmp_path / "run", lambda line: None)
    names = ["baseline", "wide"]  # slow differs in its learning rate only: its steps are the baseline's
    assert order == [*(one for name in names for one in (f"{name} warm", name)), *names, *names]
    assert found["baseline"]["seconds_per_step"] == pytest.approx(0.1) and found["baseline"]["doubtful"]
    assert found["baseline"]["spread"] == pytest.approx(3)
    steps = [plan.steps for plan in set_steps(recipe, plans, {k: v["seconds_per_step"] for k, v in found.items()})]
    assert steps == [9, 4, 9] or steps == [8, 4, 8]  # 0.9 / 0.1 in binary
    assert calibrate(recipe, plans, tmp_path / "run", lambda line: None) == found and len(order) == 8
    assert found["slow"] == found["baseline"] != found["wide"]
    monkeypatch.setattr(sweep_runs, "machine", lambda device: {"processor": "another"})
    with pytest.raises(ConfigError, match="measured on another machine .*processor was"):
        calibrate(recipe, plans, tmp_path / "run", lambda line: None)


def test_pieces_are_the_raw_bytes_of_the_files(tmp_path: Path) -> None:
    recipe = load_sweep(write_recipe(tmp_path))
    pieces = read_pieces(recipe)
    texts = [json.loads(line)["text"] for line in (tmp_path / "held.jsonl").read_text().splitlines()]
    for number, text in enumerate(texts):
        own = [piece for piece in pieces if (piece.source, piece.document) == ("held", number)]
        assert "".join(piece.text for piece in own) == text and all(piece.size <= 100 for piece in own)
    assert sum(piece.size for piece in pieces if piece.source == "other") == 5 * 31


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    path = write_recipe(folder)
    assert main(["sweep", str(path), "--out", str(folder / "run"), "--only", "slow", "--seeds", "0"]) == 0
    return folder


def test_a_sweep_goes_on_and_a_variant_more_costs_that_one_only(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = done / "run"
    first = json.loads((out / "result.json").read_text())
    assert list(first["variants"]) == ["baseline", "slow"] and first["seeds"] == [0]
    assert first["variants"]["slow"]["difference"]["verdict"] == "one seed"
    ran: list[str] = []
    real = sweep_runs._pretrain

    def counted(recipe: PretrainRecipe, plan: Any, folder: Path, sweep: Any) -> LoopResult:
        ran.append(f"{plan.name} {recipe.seed}")
        if len(ran) == 3:
            raise KeyboardInterrupt
        return real(recipe, plan, folder, sweep)

    monkeypatch.setattr(sweep_runs, "_pretrain", counted)
    assert main(["sweep", str(done / "sweep.yaml"), "--out", str(out)]) == 130
    assert ran == ["wide 0", "baseline 1", "wide 1"]
    ran.clear()
    monkeypatch.setattr(sweep_runs, "_pretrain", real)
    capsys.readouterr()
    assert main(["sweep", str(done / "sweep.yaml"), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads((out / "result.json").read_text()).keys() == result.keys()
    rows = result["variants"]
    assert list(rows) == ["baseline", "wide", "slow"] and result["seeds"] == [0, 1]
    assert rows["baseline"]["by_seed"][0] == first["variants"]["baseline"]["by_seed"][0]  # kept, not run again
    assert rows["slow"]["difference"]["value"] > 0.05  # it has hardly learnt
    for row in rows.values():
        assert row["tokens_read"] == [row["plan"]["tokens"]] * 2 and row["lossless"] and len(row["curve"]) >= 2
    assert not list(out.rglob("checkpoints")) and len(list(out.rglob("model.safetensors"))) == 6
    page = (out / "sweep.html").read_text()
    assert page.count("<svg") == 2 and "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")


def test_a_run_of_a_sweep_is_a_pretraining_that_can_be_repeated(done: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from cairn.training.pretrain import pretrain

    run = done / "run" / "runs" / "slow" / "seed-0"
    recipe = load_config(PretrainRecipe, run / "config.yaml")
    result = pretrain(recipe, tmp_path / "again", recipe_folder=done, say=lambda line: None)
    assert result.steps == json.loads((run / "training.json").read_text())["steps"]
    ours, theirs = (load_file(one / "model" / "model.safetensors") for one in (tmp_path / "again", run))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


def test_bits_are_those_of_the_model_on_whole_texts(done: Path) -> None:
    """Scoring piece by piece adds up to what `cairn eval` says of the same pieces as documents."""
    from cairn.engines.torch_engine import TorchEngine
    from cairn.evaluation.suites import bits_per_byte

    recipe = load_sweep(done / "sweep.yaml")
    run = done / "run" / "runs" / "slow" / "seed-0"
    engine = TorchEngine(str(run / "model"), device="cpu", dtype="float32")
    found = bits_per_byte(engine, [piece.text for piece in read_pieces(recipe)], context=32, stride=16)
    engine.close()
    kept = json.loads((run / "score.json").read_text())
    assert sum(kept["bits"]) == pytest.approx(found["bits_per_byte"] * found["bytes"], rel=1e-5)


def test_another_baseline_needs_another_folder(done: Path) -> None:
    recipe = load_sweep(done / "sweep.yaml", ["baseline.batch_rows=8"])
    with pytest.raises(ConfigError, match="made with other settings .*baseline.batch_rows was 4, is 8"):
        sweep_recipe(recipe, done / "run")


def test_a_variant_that_breaks_is_named_and_the_others_go_on(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(done / "run", out)
    real = sweep_runs._pretrain

    def breaks(recipe: PretrainRecipe, plan: Any, folder: Path, sweep: Any) -> LoopResult:
        if plan.name == "hot":
            raise EngineError("loss is not finite at step 2", value="nan")
        return real(recipe, plan, folder, sweep)

    monkeypatch.setattr(sweep_runs, "_pretrain", breaks)
    loaded = yaml.safe_load((done / "sweep.yaml").read_text())
    loaded["variants"] = {"hot": {"optimizer.learning_rate": 99.0}, "slow": loaded["variants"]["slow"]}
    (done / "hot.yaml").write_text(yaml.safe_dump(loaded, sort_keys=False))
    assert main(["sweep", str(done / "hot.yaml"), "--out", str(out), "--seeds", "0"]) == 0
    said = capsys.readouterr().out
    assert "loss is not finite at step 2" in said and "Not trained to the end: hot." in said
    rows = json.loads((out / "result.json").read_text())["variants"]
    assert "failed" in rows["hot"] and "bits_per_byte" not in rows["hot"] and "difference" in rows["slow"]


def test_the_page_about_sweeps_names_every_recipe_and_its_example_holds() -> None:
    root = Path(__file__).resolve().parents[2]
    text = (root / "docs" / "sweep.md").read_text(encoding="utf-8")
    kinds = {path.stem: yaml.safe_load(path.read_text())["recipe"] for path in (root / "recipes").glob("sweep-*.yaml")}
    assert set(re.findall(r"^\| `(sweep-[a-z-]+)` \|", text, re.MULTILINE)) == {
        name for name, kind in kinds.items() if kind == "sweep"
    }
    example = yaml.safe_load(re.search(r"```yaml\n(recipe: sweep.*?)```", text, re.DOTALL)[1])
    made = SweepRecipe.model_validate(example)
    assert list(made.changes())[2:] == ["learning_rate=0.002", "learning_rate=0.004", "learning_rate=0.008"]
