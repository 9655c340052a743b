"""What all prompts of a batch begin with is read once, and no output changes by it."""

from pathlib import Path

import pytest
import torch

from cairn.engines import decoding
from cairn.engines.base import GenerationRequest, Sampling
from cairn.engines.decoding import shared_prefix
from cairn.engines.torch_engine import TorchEngine
from tests.engines.tiny_models import save_adapter, save_base


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([[1] * 40 + [2, 3], [1] * 40 + [3]], 40),
        ([[1] * 40, [1] * 50, [1] * 60], 39),  # one token of the shortest is left to be read
        ([[1] * 20 + [2] * 30, [1] * 20 + [3] * 30], 0),  # too little to pay
        ([[1] * 90], 0),
        ([[1] * 40 + [2] * 9, [1] * 45 + [2] * 9, [1] * 35 + [0] * 9], 35),
    ],
)
def test_how_much_is_shared(prompts: list[list[int]], shared: int) -> None:
    assert shared_prefix(prompts) == shared


def test_outputs_are_those_of_each_prompt_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "x", base, 1)
    engine = TorchEngine(str(base), {"x": adapter}, dtype="float32", device="cpu")
    head = "Mary went to the garden. " * 6
    tails = ["John took", "Where is the milk?", "yes", "Sandra moved to the garden. none", "Where"]
    monkeypatch.setattr(decoding, "_WORTH_SHARING", 8)
    asked = [GenerationRequest(head + tail, "x", Sampling(max_new_tokens=20)) for tail in tails]
    read = []
    forward = engine._forward

    def spy(adapter: str | None, **inputs: torch.Tensor) -> object:
        read.append(inputs["input_ids"].numel())
        return forward(adapter, **inputs)

    alone = [engine.generate([request])[0].text for request in asked]
    monkeypatch.setattr(engine, "_forward", spy)
    together = [one.text for one in engine.generate(asked)]
    assert together == alone
    assert len(set(alone)) > 1
    prompts = sum(engine.count_tokens(request.prompt) for request in asked)
    assert read[0] + read[1] < prompts / 2  # the head once, then the padded tails
