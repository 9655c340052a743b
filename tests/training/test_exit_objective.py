"""The objective for early exit: its loss, which layers are left out, its curricula and its gates are what it says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from cairn.config import parse_config
from cairn.errors import ConfigError
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.training.exit_objective import EarlyExitObjective, EarlyExitObjectiveConfig, dropout_rates, exit_weights
from cairn.training.objectives import next_token
from cairn.training.pretrain_recipe import PretrainRecipe

LAYERS, EXITS = 4, (1, 2, 3)


def settings(**changes):
    return EarlyExitObjectiveConfig(kind="early_exit", **changes)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CairnForCausalLM(CairnConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, early_exit={"norm": "own"}, initializer_range=0.1,
    )).train()  # fmt: skip


def rows(count=3, length=9):
    ids = np.random.default_rng(1).integers(3, 61, (count, length + 1))
    labels = ids[:, 1:].copy()
    labels[0, :4] = -100
    return {"input_ids": ids[:, :-1].copy(), "labels": labels}


def tensors(batch):
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def made(objective, step=0, first_row=0, batch=None):
    return tensors(objective.prepare(rows() if batch is None else batch, step, first_row))


def loss_at(model, batch, exit_layer):
    logits = model(batch["input_ids"], use_cache=False, exit_layer=exit_layer).logits
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")


def test_loss_is_the_weighted_mean_of_the_end_and_the_exits(model):
    for name, weight in model.named_parameters():
        if "exit_norms" in name:
            weight.data.uniform_(0.5, 2.0)
    objective = EarlyExitObjective(settings(weight=0.8), model.config, steps=10, seed=0)
    batch = made(objective)
    loss, metrics = objective(model, batch)
    exits = {layer: loss_at(model, batch, layer) for layer in EXITS}
    end = next_token(model, batch)[0]
    weights = {layer: 0.8 * layer / LAYERS for layer in EXITS}
    wanted = (end + sum(weights[layer] * exits[layer] for layer in EXITS)) / (1 + sum(weights.values()))
    assert torch.allclose(loss, wanted, rtol=1e-5)
    assert torch.allclose(metrics["last_layer_loss"], end, rtol=1e-5)
    for layer in EXITS:
        assert torch.allclose(metrics[f"exit_{layer}_loss"], exits[layer], rtol=1e-5)
    loss.backward()
    assert all(norm.weight.grad.abs().sum() > 0 for norm in model.model.exit_norms.values())


def test_a_layer_is_left_out_for_its_rows_alone(model):
    objective = EarlyExitObjective(settings(), model.config, steps=10, seed=0)
    batch = made(objective)
    batch["layer_kept"] = torch.ones(3, LAYERS, dtype=torch.bool)
    batch["layer_kept"][1, 2] = False
    without = CairnForCausalLM(model.config).train()
    without.load_state_dict(model.state_dict())
    without.model.layers[2].self_attn.o_proj.weight.data.zero_()
    without.model.layers[2].mlp.down_proj.weight.data.zero_()
    wanted = 0
    for row, one in enumerate((model, without, model)):
        part = {name: values[row : row + 1] for name, values in batch.items() if name != "layer_kept"}
        wanted = wanted + objective(one, part)[0]
    assert torch.allclose(objective(model, batch)[0], wanted, rtol=1e-5)


def test_rates_rise_with_depth_and_over_the_steps():
    rates = dropout_rates(settings(dropout=0.4), LAYERS, 0, 10)
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.4) and rates == sorted(rates)
    for curriculum in ("linear", "exponential"):
        config = settings(dropout=0.4, dropout_curriculum=curriculum)
        last = [dropout_rates(config, LAYERS, step, 10)[-1] for step in range(10)]
        assert last[0] == 0 and last[-1] == pytest.approx(0.4) and last == sorted(last)
    assert dropout_rates(settings(dropout=0.4), 1, 0, 1) == [0.0]


def test_what_is_left_out_follows_the_rates_and_only_seed_step_and_row(model):
    objective = EarlyExitObjective(settings(dropout=0.4), model.config, steps=10, seed=5)
    many = {"input_ids": np.zeros((2000, 1), int), "labels": np.zeros((2000, 1), int)}
    kept = objective.prepare(many, 3, 0)["layer_kept"]
    assert (1 - kept.mean(0)) == pytest.approx(dropout_rates(settings(dropout=0.4), LAYERS, 3, 10), abs=0.03)
    part = {name: values[700:900] for name, values in many.items()}
    assert (objective.prepare(part, 3, 700)["layer_kept"] == kept[700:900]).all()
    assert (objective.prepare(part, 4, 700)["layer_kept"] != kept[700:900]).any()
    assert "layer_kept" not in EarlyExitObjective(settings(), model.config, steps=10, seed=5).prepare(many, 3, 0)


def test_curricula():
    equal = settings(weights="equal", weight=0.5)
    assert exit_weights(equal, EXITS, LAYERS, 0, 12) == {1: 0.5, 2: 0.5, 3: 0.5}
    rotating = settings(exits="rotating")
    asked = [exit_weights(rotating, EXITS, LAYERS, step, 12) for step in range(6)]
    assert [list(one) for one in asked] == [[1], [2], [3], [1], [2], [3]]
    gradual = settings(curriculum="gradual")
    asked = [list(exit_weights(gradual, EXITS, LAYERS, step, 12)) for step in range(12)]
    assert asked == [[3]] * 2 + [[2, 3]] * 2 + [[1, 2, 3]] * 8
    both = settings(curriculum="gradual", exits="rotating")
    assert {layer for step in range(12) for layer in exit_weights(both, EXITS, LAYERS, step, 12)} == set(EXITS)


def test_exits_that_do_not_count_cost_nothing(model):
    objective = EarlyExitObjective(settings(exits="rotating"), model.config, steps=10, seed=0)
    assert {name for name in made(objective, step=1) if name.startswith("exit_")} == {"exit_2_weight"}
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    objective(model, made(objective, step=1))
    assert len(calls) == 2


def test_gates_learn_how_little_the_end_differs_and_move_nothing_else(model):
    batch = made(EarlyExitObjective(settings(), model.config, steps=10, seed=0))
    objective = EarlyExitObjective(settings(), model.config, steps=10, seed=0)
    objective(model, batch)[0].backward()
    wanted = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    config = CairnConfig(**{**model.config.to_dict(), "early_exit": {"norm": "own", "gate": True}})
    gated = CairnForCausalLM(config).train()
    gated.load_state_dict(model.state_dict(), strict=False)
    loss, metrics = objective(gated, batch)
    loss.backward()
    gates = [weight for name, weight in gated.named_parameters() if "exit_gates" in name]
    assert len(gates) == 6 and all(weight.grad.abs().sum() > 0 for weight in gates)
    for name, weight in gated.named_parameters():
        assert "exit_gates" in name or torch.allclose(weight.grad, wanted[name], atol=1e-5)
    optimizer = torch.optim.Adam(gates, lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss, metrics = objective(gated, batch)
        metrics["gate_loss"].backward()
        optimizer.step()
    with torch.no_grad():
        x, inputs = gated.model.begin(batch["input_ids"], use_cache=False)
        x = gated.model.run_layers(x, inputs, 0, 1)
        state = gated.model.norm_after(1)(x)
        own = gated.lm_head(state).log_softmax(-1)
        end = gated(batch["input_ids"], use_cache=False).logits.log_softmax(-1)
        same = torch.exp(-(end.exp() * (end - own)).sum(-1))
        guessed = gated.model.exit_gates["1"](state)
    seen = (slice(1, None), slice(None, None, 4))
    assert (guessed[seen][..., 0] - same[seen]).abs().mean() < 0.1
    assert ((guessed[seen][..., 1] > 0.5) == (own.argmax(-1) == end.argmax(-1))[seen]).float().mean() > 0.8


def recipe(**changes):
    return parse_config(PretrainRecipe, {
        "recipe": "pretrain", "name": "tiny", "steps": 4,
        "data": {"sources": [{"name": "words", "path": "text.jsonl", "licence": "made by a test"}]}, **changes,
    }, "recipe.yaml")  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "early_exit needs a model with exits, allowed: with model.changes.early_exit"),
        ({"model": {"changes": {"early_exit": {"layers": [2, 8]}}}}, r"exits \[8\] are out of range.*1 to 7"),
        ({"model": {"changes": {"early_exit": {"layer": [2]}}}}, "unknown field 'layer' .did you mean layers"),
        ({"model": {"changes": {"early_exit": {}, "byte_pooling": {}}}}, "both set, allowed: one of them"),
    ],
)
def test_a_recipe_that_cannot_exit_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(objective={"kind": "early_exit"}, **changes)
    assert recipe(objective={"kind": "early_exit"}, model={"changes": {"early_exit": {"layers": [7]}}})


def test_the_manual_names_every_setting():
    from dataclasses import fields

    from cairn.engines.exit_decoding import ExitDecoding
    from cairn.models.early_exit import EarlyExit

    text = (Path(__file__).resolve().parents[2] / "docs" / "early_exit.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    own = {*EarlyExitObjectiveConfig.model_fields, *ExitDecoding.model_fields, *(one.name for one in fields(EarlyExit))}
    assert named == own - {"kind"}
    for recipe_line in re.findall(r"^objective: (.+)$", text, re.MULTILINE):
        EarlyExitObjectiveConfig(**yaml.safe_load(recipe_line))
