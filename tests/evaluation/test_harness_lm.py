"""Our LM over an engine gives the figures of the harness's own `hf` model, and says what did not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cairn.engines.fake_engine import FakeEngine
from cairn.engines.torch_engine import TorchEngine
from cairn.errors import EngineError, InputError
from cairn.evaluation.harness import score_tasks
from cairn.evaluation.harness_data import LocalData
from cairn.evaluation.harness_lm import HarnessModel, cut_left, sampling_of
from cairn.evaluation.harness_tasks import LoadedTasks, load_tasks
from cairn.models.tokenization import prompt_ids
from tests.engines.tiny_models import tiny_llama
from tests.evaluation.harness_files import tiny_neox, word_tokenizer, write_files

TASKS = ["arc_easy", "hellaswag", "winogrande", "blimp_passive_1", "mmlu_anatomy", "gsm8k"]
CONTEXT = 72  # some prompts with two solved examples are longer, and a shorter output must fit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LocalData:
    return LocalData(write_files(tmp_path_factory.mktemp("data")))


def models() -> dict[str, Any]:
    tokenizer = word_tokenizer(CONTEXT)
    return {"llama": (tiny_llama(3, vocab_size=len(tokenizer), context=CONTEXT), tokenizer), "neox": tiny_neox(CONTEXT)}


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    model, tokenizer = models()["llama"]
    return TorchEngine(model, tokenizer=tokenizer)


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one, doc={}) for one in arguments]


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_figures_are_those_of_the_harness_hf_model(
    name: str, data: LocalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    def loaded() -> LoadedTasks:
        found = load_tasks(TASKS, data=data, shots={"arc_easy": 2, "gsm8k": 0})
        found.tasks["gsm8k"].set_config(key="generation_kwargs", value={"max_gen_toks": 8}, update=True)
        return found

    model, tokenizer = models()[name]
    lm = HarnessModel(TorchEngine(model, tokenizer=tokenizer))
    ours = score_tasks(lm, loaded(), items=tmp_path / "items")
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda _: None)  # asks pip for seconds
    theirs = lm_eval.evaluator.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3), tasks=list(loaded().tasks.values()),
        bootstrap_iters=10, task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip
    assert ours["tasks"]["arc_easy"]["counts"]["contexts_cut"] > 0  # the harness cuts the same
    for task in TASKS:
        figures = {key: metric["value"] for key, metric in ours["tasks"][task]["metrics"].items()}
        assert figures == {key: theirs["results"][task][key] for key in figures} and figures
        for key, metric in ours["tasks"][task]["metrics"].items():
            stderr = theirs["results"][task][key.replace(",", "_stderr,", 1)]
            assert metric["stderr"] == (None if stderr == "N/A" else pytest.approx(stderr))
        rows = [json.loads(line) for line in (tmp_path / "items" / f"{task}.jsonl").read_text().splitlines()]
        for row, sample in zip(rows, theirs["samples"][task], strict=False):
            if task == "gsm8k":
                assert row["outputs"] == sample["resps"][0] and row["outputs"][0]
            else:
                scores = [response[0][0] for response in sample["resps"]]
                assert row["logprobs"] == pytest.approx(scores, abs=1e-3, rel=1e-5)


def test_what_is_cut_is_counted_and_named(engine: TorchEngine) -> None:
    lm = HarnessModel(engine)
    long = ("milk " * 100, " apple")
    (first,) = lm.loglikelihood(requests(long))
    assert lm.counts["contexts_cut"] == 1 and lm.cut == {long: lm.counts["tokens_cut"]}
    whole = prompt_ids(engine.tokenizer, long[0] + long[1])
    assert lm.counts["tokens_cut"] == len(whole) - (CONTEXT + 1)
    short = ("milk", " apple")
    lm.begin()
    assert lm.loglikelihood(requests(short, short, long))[2] == pytest.approx(first)
    assert lm.counts["contexts_cut"] == 1


def test_white_space_before_the_answer_belongs_to_the_answer(engine: TorchEngine) -> None:
    lm = HarnessModel(engine)
    after, before = lm.loglikelihood(requests(("Where is the ", "milk"), ("Where is the", " milk")))
    assert after == pytest.approx(before)


def test_an_empty_continuation_is_the_end_mark_and_is_counted(engine: TorchEngine) -> None:
    import torch

    lm = HarnessModel(engine)
    ((logprob, _),) = lm.loglikelihood(requests(("Where is the milk", "")))
    ids = prompt_ids(engine.tokenizer, "Where is the milk")
    with torch.inference_mode():
        logits = engine.model(torch.tensor([ids])).logits[0, -1].float()
    assert logprob == pytest.approx(float(logits.log_softmax(-1)[engine.tokenizer.eos_token_id]), rel=1e-4)
    assert lm.counts["empty_continuations"] == 1


def test_a_continuation_that_fits_nowhere_is_an_error(engine: TorchEngine) -> None:
    with pytest.raises(InputError, match=r"a continuation of \d+ tokens is longer than the model's context.*72 tokens"):
        HarnessModel(engine).loglikelihood(requests(("Where", " milk" * 200)))


def test_prompts_are_cut_and_outputs_shortened_where_the_context_is_short(engine: TorchEngine) -> None:
    lm = HarnessModel(engine)
    greedy = {"until": [], "max_gen_toks": 10}
    (long,) = lm.generate_until(requests(("milk apple " * 60 + "bread", greedy)))
    assert lm.counts["contexts_cut"] == 1 and lm.counts["outputs_shortened"] == 0
    kept = cut_left(engine.tokenizer, "milk apple " * 60 + "bread", CONTEXT - 10)
    assert len(prompt_ids(engine.tokenizer, kept)) <= CONTEXT - 10 and kept.endswith("apple bread")
    assert long == lm.generate_until(requests((kept, greedy)))[0]
    lm.begin()
    lm.generate_until(requests(("milk", {"until": [], "max_gen_toks": 1000})))
    assert lm.counts == {"outputs_shortened": 1}


def test_settings_of_a_task_become_a_sampling() -> None:
    full = {"until": ["\n", ""], "max_gen_toks": 5, "do_sample": True, "temperature": 0.2, "top_p": 0.95}
    found = sampling_of(full, 3)
    assert (found.stop, found.max_new_tokens, found.temperature, found.top_p, found.seed) == (("\n",), 5, 0.2, 0.95, 3)
    assert sampling_of({"until": "x", "do_sample": False, "temperature": 0.9}, 0).temperature == 0.0
    assert sampling_of({}, 0).max_new_tokens == 256
    with pytest.raises(InputError, match=r"generation settings that are not known here: \['num_beams'\]"):
        sampling_of({"num_beams": 4}, 0)


def test_repeated_samples_get_seeds_of_their_own() -> None:
    engine = FakeEngine(lambda request: str(request.sampling.seed))
    settings = {"until": [], "do_sample": True, "temperature": 1.0}
    same = requests(("a", settings), ("b", settings), ("a", settings))
    assert HarnessModel(engine, seed=5).generate_until(same) == ["5", "5", "6"]


def test_an_engine_without_token_ids_gets_texts() -> None:
    engine = FakeEngine(scores={"yes": -1.0, "no": -2.0})
    reported = []
    lm = HarnessModel(engine)
    lm.begin(lambda done, total: reported.append((done, total)))
    assert lm.loglikelihood(requests(("Is it?", " yes"), ("Is it?", " no"))) == [(-1.0, False), (-2.0, False)]
    assert [one.continuation for one in engine.score_requests] == [" yes", " no"] and reported == [(2, 2)]
    with pytest.raises(EngineError, match="engine fake cannot do what is needed: 'logprobs'"):
        HarnessModel(FakeEngine(["x"])).loglikelihood(requests(("a", "b")))


def test_rolling_scores_whole_texts(engine: TorchEngine) -> None:
    (found,) = HarnessModel(engine).loglikelihood_rolling(requests(("Mary went to the kitchen. " * 12,)))
    assert found == engine.loglikelihood_rolling(["Mary went to the kitchen. " * 12])[0].logprob
    assert math.isfinite(found)
