"""One loop: accumulation, resuming and processes change nothing; what goes wrong is said."""

import json
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import BaseModel

from cairn.errors import CheckpointError, EngineError
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.runs import RunFolder
from cairn.training.checkpoint import latest_checkpoint
from cairn.training.loop import LoopConfig, train
from cairn.training.objectives import completion, next_token
from cairn.training.optim import OptimizerConfig, ScheduleConfig, build_optimizers


class Settings(BaseModel):
    name: str = "test"


class RandomBatches:
    """Batch `step` from the step's own seed; some labels are ignored, unevenly over the rows."""

    def batch(self, step):
        draw = np.random.default_rng(step)
        ids = draw.integers(3, 60, (6, 13))
        labels = ids[:, 1:].copy()
        for row, cut in enumerate(draw.integers(0, 10, 6)):
            labels[row, :cut] = -100
        return {"input_ids": ids[:, :-1], "labels": labels}


def model(dropout=0.0):
    torch.manual_seed(0)
    return CairnForCausalLM(CairnConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_dropout=dropout,
    ))


def run_loop(folder, steps=6, objective=next_token, batches=None, dropout=0.0, evaluate=None, **loop):
    tiny = model(dropout)
    config = LoopConfig(**{"autocast": "none", "checkpoint_every": 2, "log_every": 1, **loop})
    optimizers = build_optimizers(tiny, OptimizerConfig(kind="muon", learning_rate=0.01))
    result = train(tiny, objective, batches or RandomBatches(), optimizers, ScheduleConfig(), steps, config,
                   RunFolder(folder, Settings()), evaluate=evaluate)
    return tiny, result


def weights(tiny):
    return torch.cat([p.detach().flatten() for p in tiny.parameters()])


def test_first_loss_is_the_plain_mean(tmp_path):
    batch = RandomBatches().batch(0)
    tiny = model()
    logits = tiny(torch.from_numpy(batch["input_ids"])).logits
    plain = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch["labels"]).flatten())
    run_loop(tmp_path, steps=1)
    logged = RunFolder(tmp_path, Settings()).metrics()[0]
    assert logged["loss"] == pytest.approx(plain.item(), rel=1e-5)


def test_accumulation_changes_nothing(tmp_path):
    whole, one = run_loop(tmp_path / "a", steps=1)
    parts, two = run_loop(tmp_path / "b", steps=1, micro_rows=2)
    assert one.loss == pytest.approx(two.loss, rel=1e-6) and one.tokens == two.tokens == 72
    assert (weights(whole) - weights(parts)).abs().max() < 1e-4
    assert (weights(whole) - weights(model())).abs().max() > 1e-4


def test_completion_objective_equals_next_token():
    batch = {name: torch.from_numpy(values) for name, values in RandomBatches().batch(3).items()}
    one, two = model(), model()
    plain, _ = next_token(one, batch)
    short, metrics = completion(two, batch)
    plain.backward()
    short.backward()
    assert plain.item() == pytest.approx(short.item(), rel=1e-6)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-5) for a, b in zip(one.parameters(), two.parameters(),
                                                                         strict=True))
    assert 0 <= int(metrics["right_tokens"]) <= int((batch["labels"] != -100).sum())


class StopAt(RandomBatches):
    """Interrupts as Ctrl-C would, while step `at` is being prepared."""

    def __init__(self, at, number=signal.SIGINT):
        self.at, self.number = at, number

    def batch(self, step):
        if step == self.at:
            signal.raise_signal(self.number)
        return super().batch(step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_finishes_the_step_and_resumes_bit_for_bit(tmp_path, number):
    """With dropout, so that the random state counts too; evaluation draws from it and must not matter."""
    straight, expected = run_loop(tmp_path / "straight", dropout=0.3, evaluate=lambda step: {}, eval_every=2)
    with pytest.raises(KeyboardInterrupt):
        run_loop(tmp_path / "stopped", dropout=0.3, batches=StopAt(2, number), evaluate=lambda step: {}, eval_every=2)
    assert latest_checkpoint(tmp_path / "stopped" / "checkpoints").name == "step-00000003"
    torch.manual_seed(99)
    resumed, result = run_loop(tmp_path / "stopped", dropout=0.3, evaluate=lambda step: {}, eval_every=2)
    assert torch.equal(weights(resumed), weights(straight))
    assert (result.steps, result.tokens, result.loss) == (6, expected.tokens, expected.loss)
    losses = [[row["loss"] for row in RunFolder(tmp_path / name, Settings()).metrics() if "loss" in row]
              for name in ("straight", "stopped")]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_finished_run_is_not_trained_again(tmp_path):
    first, _ = run_loop(tmp_path)
    second, result = run_loop(tmp_path, batches=StopAt(0))
    assert torch.equal(weights(first), weights(second)) and result.steps == 6


def test_keeps_the_newest_checkpoints(tmp_path):
    run_loop(tmp_path, steps=7, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000006", "step-00000007"]


def test_damaged_checkpoint_is_refused(tmp_path):
    run_loop(tmp_path, steps=2)
    state = tmp_path / "checkpoints" / "step-00000002" / "state.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"checkpoint is damaged.*step-00000002.*Next: delete"):
        run_loop(tmp_path, steps=2)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    run_loop(tmp_path, steps=2)
    other = CairnForCausalLM(CairnConfig(vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                         num_attention_heads=4, num_key_value_heads=2))
    with pytest.raises(CheckpointError, match="written for another model; 6 parameters differ"):
        train(other, next_token, RandomBatches(), build_optimizers(other, OptimizerConfig()), ScheduleConfig(), 2,
              LoopConfig(), RunFolder(tmp_path, Settings()))


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    def broken(tiny, batch):
        loss, metrics = next_token(tiny, batch)
        return loss * float("nan"), metrics

    with pytest.raises(EngineError, match="loss is not finite at step 1: nan.*lower the learning rate"):
        run_loop(tmp_path, objective=broken)


def test_bf16_autocast_and_compile_stay_close(tmp_path):
    plain, one = run_loop(tmp_path / "a", steps=3)
    mixed, two = run_loop(tmp_path / "b", steps=3, autocast="bf16")
    assert two.loss == pytest.approx(one.loss, rel=0.02) and two.loss != one.loss
    assert next(mixed.parameters()).dtype == torch.float32


def test_learns(tmp_path):
    class Same(RandomBatches):
        def batch(self, step):
            return super().batch(0)

    _, result = run_loop(tmp_path, steps=60, batches=Same())
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] > 4.0 and result.loss < 1.5
