"""Dropout, row length and averages over the steps: the shapes they say, and nothing else changes."""

import numpy as np
import pytest
import torch

from cairn.config import parse_config
from cairn.errors import ConfigError
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.training.averaging import AveragingConfig, WeightAverage
from cairn.training.schedules import (
    DropoutConfig,
    DropoutSchedule,
    LengthWarmupConfig,
    cut_rows,
    dropout_rate,
    row_length,
)


def tiny(**changes):
    torch.manual_seed(0)
    return CairnForCausalLM(CairnConfig(**{
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, **changes,
    }))


def rates(steps=9, **settings):
    config = DropoutConfig(**settings)
    return [round(dropout_rate(config, step, steps), 6) for step in range(steps)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "constant", "rate": 0.2}, [0.2] * 9),
        ({"kind": "linear_up", "rate": 0.8}, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        ({"kind": "linear_down", "rate": 0.8}, [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0]),
        ({"kind": "early", "rate": 0.1, "share": 1 / 3}, [0.1] * 3 + [0] * 6),
        ({"kind": "late", "rate": 0.1, "share": 1 / 3}, [0] * 6 + [0.1] * 3),
        ({"kind": "triangle", "rate": 0.3, "cycles": 3}, [0, 0.2, 0.2] * 3),
    ],
)  # fmt: skip
def test_dropout_has_the_shape_it_says(settings, expected):
    assert rates(**settings) == pytest.approx(expected, abs=1e-6)


def test_dropout_reaches_the_model_and_is_taken_out_again():
    model = tiny(attention_dropout=0.05).train()
    ids = torch.arange(12)[None]
    schedule = DropoutSchedule(DropoutConfig(kind="late", rate=0.5, share=0.5), model, 4)
    schedule(0)
    assert torch.equal(model(ids).logits, model(ids).logits)
    schedule(3)
    assert not torch.equal(model(ids).logits, model(ids).logits)
    schedule.restore()
    assert (model.config.attention_dropout, model.config.hidden_dropout) == (0.05, 0.0)
    only = DropoutSchedule(DropoutConfig(kind="constant", rate=0.5, where=["hidden"]), model, 4)
    only(0)
    assert model.config.attention_dropout == 0.05
    model.config.attention_dropout = 0.0
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_settings_without_effect_are_refused():
    with pytest.raises(ConfigError, match="share is of no effect with kind triangle, allowed: with kind early or late"):
        parse_config(DropoutConfig, {"kind": "triangle", "share": 0.5}, "test")
    with pytest.raises(ConfigError, match="decay of no effect with kind latest"):
        parse_config(AveragingConfig, {"decay": 0.5}, "test")


def test_rows_get_longer_by_doubling_and_hold_the_same_tokens():
    config = LengthWarmupConfig(start=8, share=0.5)
    assert [row_length(config, step, 12, 64) for step in range(12)] == [8, 8, 16, 16, 32, 32] + [64] * 6
    batch = {"input_ids": np.arange(2 * 64).reshape(2, 64), "teacher": np.arange(2 * 64 * 3).reshape(2, 64, 3)}
    cut = cut_rows(batch, 16)
    assert {name: values.shape for name, values in cut.items()} == {"input_ids": (8, 16), "teacher": (8, 16, 3)}
    assert all((cut[name].ravel() == batch[name].ravel()).all() for name in batch)
    assert config.faults(64) == [] and "allowed: sequence_length (72) halved" in config.faults(72)[0]
    assert "length_warmup.start: 8" in config.faults(8)[0]


def followed(config, steps=7):
    model = tiny()
    average = WeightAverage(config, model, steps)
    states = []
    for step in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        states.append([parameter.detach().clone() for parameter in model.parameters()])
        average.after_step(step + 1)
        if step == 4:  # as a resumed run would
            kept = average.state_dict()
            average = WeightAverage(config, model, steps)
            average.load_state_dict(kept)
    last = [parameter.detach().clone() for parameter in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(last, states[-1], strict=True))  # following changes nothing
    average.write()
    return list(model.parameters()), states


def test_latest_is_the_mean_of_the_last_marks():
    ours, states = followed(AveragingConfig(count=3, every=2))
    for place, parameter in enumerate(ours):
        expected = torch.stack([states[step][place] for step in (2, 4, 6)]).mean(0)
        assert torch.allclose(parameter, expected, atol=1e-6)


def test_ema_is_the_recursion():
    ours, states = followed(AveragingConfig(kind="ema", decay=0.8))
    for place, parameter in enumerate(ours):
        expected = states[0][place]
        for state in states[1:]:
            expected = 0.8 * expected + 0.2 * state[place]
        assert torch.allclose(parameter, expected, atol=1e-6)


def test_average_of_nothing_is_refused():
    with pytest.raises(ValueError, match="there is no average yet"):
        WeightAverage(AveragingConfig(), tiny(), 500).write()
    assert AveragingConfig(count=5, every=50).faults(200) == [
        "averaging: 5 states 50 steps apart need 201 steps, allowed: at most steps (200)"
    ]
