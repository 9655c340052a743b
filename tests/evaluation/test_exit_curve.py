"""Early exit is measured on the tokens it is scored on, and its scores are those of its exits."""

import json

import pytest
import torch

from cairn.engines.exit_decoding import ExitDecoding
from cairn.engines.exit_engine import ExitEngine
from cairn.engines.torch_engine import TorchEngine
from cairn.errors import InputError
from cairn.evaluation.exit_curve import forced, greedy, passages, threshold_within, writing_rates
from cairn.evaluation.suites import bits_per_byte
from cairn.models import CairnConfig, CairnForCausalLM
from tests.engines.tiny_models import TEXTS, tiny_tokenizer

WORDS = " ".join(TEXTS[:2] * 6)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CairnForCausalLM(CairnConfig(
        vocab_size=360, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.25, early_exit={"layers": [1, 2]},
    )).eval()  # fmt: skip


def engine(model, **exits):
    settings = {"exits": ExitDecoding(**exits)} if exits else {}
    return (ExitEngine if exits else TorchEngine)(model, tokenizer=tiny_tokenizer(), device="cpu", **settings)


def test_passages_are_the_text_itself():
    pairs = passages(["too short", WORDS], 3, prompt_words=4, words=8)
    assert len(pairs) == 3
    for prompt, text in pairs:
        assert f"{prompt} {text}" in WORDS and len(prompt.split()) == 4 and len(text.split()) == 8
    with pytest.raises(InputError, match="no document is long enough to write along.*at least 64 words"):
        passages(["too short"], 3)


def test_every_engine_writes_the_passage_whatever_its_exits(model):
    pairs = passages([WORDS], 2, prompt_words=4, words=8)
    sides = {"full": engine(model), "always": engine(model, threshold=1e-9)}
    found = writing_rates(sides, forced(sides["full"], pairs), 2)
    for rates in found.values():
        assert [text.strip() for text in rates["texts"]] == [text for _, text in pairs]
        assert 0 < rates["spread"][0] <= rates["tokens_per_s"] <= rates["spread"][1]
    assert found["full"]["tokens"] == found["always"]["tokens"]
    assert set(sides["always"].exit_usage.tokens) == {1}
    assert all(request.constraint is None for request in greedy(pairs, 5))


def test_bits_per_byte_are_those_of_the_exits(model):
    texts = TEXTS[:2]
    full = bits_per_byte(engine(model), texts)["bits_per_byte"]
    assert bits_per_byte(engine(model, threshold=2.0), texts)["bits_per_byte"] == pytest.approx(full, abs=1e-5)
    assert bits_per_byte(engine(model, mode="speculative"), texts)["bits_per_byte"] == pytest.approx(full, abs=1e-5)
    for threshold in (1e-9, 0.2):
        early = engine(model, threshold=threshold)
        nats = -sum(score.logprob for score in early.loglikelihood_rolling(texts))
        size = sum(len(text.encode()) for text in texts)
        found = bits_per_byte(early, texts, context=256)["bits_per_byte"]
        assert found == pytest.approx(nats / torch.log(torch.tensor(2.0)).item() / size, rel=1e-4)
        assert abs(found - full) > 1e-3


def test_threshold_within_keeps_the_limit():
    assert threshold_within(lambda threshold: 2 - threshold, 1.3, halvings=10) == pytest.approx(0.7, abs=0.002)
    assert threshold_within(lambda threshold: 1.0, 1.3) < 0.02
    assert threshold_within(lambda threshold: 2.0, 1.3) == 1.0


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("early")
    model.save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    (path / "text.txt").write_text(WORDS + " " + WORDS)
    return path


def test_cairn_exits_reports_every_threshold_and_the_drafts(folder, capsys):
    from cairn.cli import main

    command = ["exits", str(folder / "model"), "--text", str(folder / "text.txt"), "--thresholds", "0.000001,0.2,1.5",
               "--passages", "1", "--turns", "1", "--draft-threshold", "0.01", "--device", "cpu"]  # fmt: skip
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    full, always, some, never = result["rows"]
    assert full["threshold"] is None and full["layers_per_token"] == never["layers_per_token"] == 3
    assert always["exits"] == {"1": 1.0} and always["layers_per_token"] == 1
    assert 1 < some["layers_per_token"] < 3 and sum(some["exits"].values()) == pytest.approx(1)
    assert never["bits_per_byte"] == pytest.approx(full["bits_per_byte"], abs=1e-5)
    assert result["speculative"]["same_texts"] and result["speculative"]["drafted"] > 0
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "full model" in shown and "self-speculation from exit 1" in shown and "the same text" in shown


def test_wrong_use_is_one_error(folder, capsys):
    from cairn.cli import main

    for extra, message in (
        (["--layers", "3"], "these are not exits of the model: [3]"),
        (["--thresholds", "0.5,x"], "--thresholds is a list of numbers"),
        (["--thresholds", "0"], "an exit is always surer than 0"),
    ):
        assert main(["exits", str(folder / "model"), "--text", str(folder / "text.txt"), *extra]) != 0
        assert message in capsys.readouterr().err
    assert main(["eval", str(folder / "model"), "--text", str(folder / "text.txt"), "--exit-threshold", "0"]) != 0
    assert "surer than that" in capsys.readouterr().err
    assert main(["eval", str(folder / "model"), "--text", str(folder / "text.txt"), "--exit-threshold", "0.2",
                 "--json"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["settings"]["exit_threshold"] == 0.2
