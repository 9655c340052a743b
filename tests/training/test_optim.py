"""Schedules have the shape they say, and each parameter gets the optimizer it should."""

import pytest
import torch
from torch import nn

from cairn.config import parse_config
from cairn.errors import ConfigError, EngineError
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.training.optim import OptimizerConfig, ScheduleConfig, build_optimizers, schedule_factor


def curve(steps=100, **settings):
    config = ScheduleConfig(**settings)
    return [schedule_factor(config, step, steps) for step in range(steps)]


def test_wsd_rises_holds_and_falls():
    values = curve(kind="wsd", warmup=0.1, decay=0.2, final=0.1)
    assert values[0] == pytest.approx(1 / 11) and values[9] == pytest.approx(10 / 11)
    assert values[10:80] == [1.0] * 70
    falls = [a - b for a, b in zip(values[79:], values[80:], strict=False)]
    assert all(fall == pytest.approx(0.9 / 21) for fall in falls)
    assert values[-1] > 0.1


def test_cosine_is_half_way_in_the_middle_and_constant_stays():
    values = curve(steps=101, kind="cosine", warmup=0.0)
    assert values[50] == pytest.approx(0.5, abs=0.02) and values[-1] < 0.01
    assert set(curve(kind="constant", warmup=0.0)) == {1.0}


def test_linear_falls_by_equal_steps():
    values = curve(kind="linear", warmup=0.0)
    assert {round(a - b, 9) for a, b in zip(values, values[1:], strict=False)} == {round(1 / 101, 9)}


def test_schedule_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"warmup 0.5 and decay 0.8 are more than all steps; allowed: sum <= 1"):
        parse_config(ScheduleConfig, {"warmup": 0.5, "decay": 0.8}, "test")


def model():
    torch.manual_seed(0)
    return CairnForCausalLM(CairnConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                        num_attention_heads=4, num_key_value_heads=2, qk_norm=True))


def test_muon_takes_layer_matrices_and_adamw_the_rest():
    tiny = model()
    adam, muon = build_optimizers(tiny, OptimizerConfig(kind="muon")).parts
    names = {id(p): n for n, p in tiny.named_parameters()}
    by_muon = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    by_adam = {names[id(p)]: g["weight_decay"] for g in adam.param_groups for p in g["params"]}
    assert len(by_muon) == 14 and all(name.endswith("_proj.weight") for name in by_muon)
    assert by_muon.isdisjoint(by_adam) and len(by_muon) + len(by_adam) == len(names)
    assert {n for n, decay in by_adam.items() if decay} == {"model.embed_tokens.weight"}


def test_frozen_parameters_stay_out():
    tiny = model()
    for parameter in tiny.parameters():
        parameter.requires_grad_(False)
    tiny.model.norm.weight.requires_grad_(True)
    (adam,) = build_optimizers(tiny, OptimizerConfig(kind="muon")).parts
    assert [p.shape for g in adam.param_groups for p in g["params"]] == [torch.Size([32])]


def test_step_scales_the_peak_and_clears_gradients():
    line = nn.Linear(2, 2)
    optimizers = build_optimizers(line, OptimizerConfig(learning_rate=0.5))
    line.weight.grad, line.bias.grad = torch.ones(2, 2), torch.ones(2)
    optimizers.step(0.1)
    assert [g["lr"] for g in optimizers.parts[0].param_groups] == [0.05, 0.05]
    assert line.weight.grad is None
    optimizers.step(0.2)
    assert optimizers.parts[0].param_groups[0]["lr"] == pytest.approx(0.1)


def test_torch_without_muon_says_so(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(EngineError, match="has no Muon optimizer.*Allowed: torch >= 2.9.*optimizer.kind=adamw"):
        build_optimizers(model(), OptimizerConfig(kind="muon"))
