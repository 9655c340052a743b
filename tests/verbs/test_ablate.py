"""`cairn ablate`: what each change makes of a stack, and an ablation on a tiny base with seconds of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cairn.cli import main
from cairn.data.examples import adapter_pairs, ambiguous_prompts, read_examples
from cairn.engines.base import GenerationRequest
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import ConfigError
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec
from cairn.verbs.comparison.ablate_variants import VariedStack, grid_name, merged_row, plan_variants, vary
from cairn.verbs.comparison.bare_stages import BareStages
from cairn.verbs.comparison.recipe import AblateSettings, Variant
from tests.verbs.tiny_experiment import stack, write_base, write_data, write_recipe

FOUR = {
    "name": "four", "inputs": ["story", "question"],
    "stages": [
        {"name": "mention", "kind": "map", "over": "story", "keep": "yes", "prompt": "{question} {item}?",
         "contract": {"kind": "choices", "values": ["yes", "no"]}, "sampling": {"max_new_tokens": 3}},
        {"name": "link", "reads": ["mention"], "prompt": "{mention} {question} Who:", "empty": "nobody {at} all",
         "contract": {"kind": "copied_from_input", "fields": ["mention", "question"]}},
        {"name": "follow", "kind": "map", "over": "story", "keep": "yes", "reads": ["link"], "adapter": "mention",
         "prompt": "{link} {item}?", "contract": {"kind": "choices", "values": ["yes", "no"]}},
        {"name": "answer", "reads": ["follow", "link"], "prompt": "{{x}} {follow} {link} {question} A:"},
    ],
    "training": {
        "tokens_total": 100, "lora": {"rank": 8},
        "adapters": {
            "mention": {"share": 0.5, "balance": 1.0}, "link": {"share": 0.3, "rank": 4}, "answer": {"share": 0.2},
        },
    },
}  # fmt: skip


def four() -> StackSpec:
    return StackSpec.model_validate(FOUR)


def made(variant: dict[str, Any], spec: StackSpec | None = None) -> VariedStack:
    return vary(spec or four(), "v", Variant(**variant), lambda group: 11 * len(group))


def test_merged_stages_are_one_call_with_their_shares_and_ranks_and_rules_take_the_values_out() -> None:
    varied = made({"merge": [["link", "follow"]]})
    assert [stage.name for stage in varied.spec.stages] == ["mention", "link_follow", "link", "follow", "answer"]
    assert varied.depth == 3 and varied.trains and varied.groups == {("link", "follow"): "link_follow"}
    writer, link, follow = varied.spec.stages[1:4]
    assert writer.prompt == "story: {story}\nquestion: {question}\nmention: {mention}\nlink, follow:"
    assert writer.sampling.max_new_tokens == 22 and (link.by, follow.by) == ("rule", "rule")
    assert varied.spec.stage("answer") == four().stage("answer")
    adapters = varied.spec.training["adapters"]  # follow's adapter is mention's too, and stays there
    assert adapters["link_follow"] == {"share": 0.3, "rank": 4} and adapters["mention"]["rank"] == 8
    assert "link" not in adapters and adapters["mention"]["balance"] == 1.0
    whole = made({"merge": [["mention", "link", "follow", "answer"]]})
    assert whole.depth == 1 and whole.spec.answer_stage == "answer"
    (plan,) = whole.spec.training["adapters"].values()
    assert plan["share"] == pytest.approx(1) and plan["rank"] == 8 + 4 + 8


def test_a_merged_stack_says_at_run_time_what_the_chain_said() -> None:
    varied = made({"merge": [["mention", "link", "follow", "answer"]]})
    engine = FakeEngine([" mention: A.\nB.\nlink: John\nfollow: none\nanswer: hall", " mention: A."],
                        adapters=varied.spec.adapter_names())  # fmt: skip
    inputs = [{"story": "A.\nB.", "question": "?"}, {"story": "C.", "question": "?"}]
    right, cut_off = Runner(varied.spec, engine).run(inputs)
    values = {record.name: record.value for record in right.stages[1:]}
    assert values == {"mention": "A.\nB.", "link": "John", "follow": "none", "answer": "hall"}
    assert right.answer == "hall" and right.totals.calls == 1
    assert cut_off.answer == "none"  # what the chain did not come to is the stage's word for nothing


def test_a_dropped_filter_lets_all_items_through_and_another_stage_says_nothing() -> None:
    no_follow = made({"drop": ["follow"]})
    answer = no_follow.spec.stage("answer")
    assert answer.prompt == "{{x}} {story} {link} {question} A:" and answer.reads == ["link"]
    assert no_follow.spec.training["adapters"]["mention"]["share"] == pytest.approx(0.5)  # mention has it still
    with pytest.raises(ConfigError, match="stage 'answer' runs over 'follow', and its gold values are for those items"):
        over = {"kind": "map", "over": "follow", "prompt": "{item} {question}", "reads": ["follow"]}
        made({"drop": ["follow"]}, made({"replace": {"answer": over}}).spec)
    no_mention = made({"drop": ["mention"]})
    assert no_mention.spec.stage("link").contract.fields == ["story", "question"]
    no_link = made({"drop": ["link"]})
    assert no_link.spec.stage("follow").prompt == "nobody {{at}} all {item}?"
    shares = {name: plan["share"] for name, plan in no_link.spec.training["adapters"].items()}
    assert shares == pytest.approx({"mention": 0.5 / 0.7, "answer": 0.2 / 0.7})


def test_settings_and_definitions_are_changed_by_path_and_name() -> None:
    varied = made({"set": {"training.lora.rank": 2, "stages.link.retries": 0, "stages.0.prompt": "{item} {question}!"}})
    assert varied.spec.training["lora"]["rank"] == 2 and varied.spec.stage("link").retries == 0
    assert varied.spec.stages[0].prompt == "{item} {question}!"
    rule = {"rule": "mentions", "arguments": {"text": "{item}", "word": "{question}"}}
    replaced = made({"replace": {"mention": rule, "follow": {**rule, "adapter": None}}})
    assert [stage.by for stage in replaced.spec.stages] == ["rule", "model", "rule", "model"]
    assert set(replaced.spec.training["adapters"]) == {"link", "answer"}
    swapped = made({"replace": {"follow": {"reads": [], "prompt": "{question} {item}"}}, "swap": [["link", "follow"]]})
    assert [stage.name for stage in swapped.spec.stages] == ["mention", "follow", "link", "answer"]


def test_what_is_not_trained_needs_no_training() -> None:
    assert not made({"set": {"stages.link.retries": 0, "stages.answer.sampling.max_new_tokens": 5}}).trains
    assert not made({"base": ["follow"]}).trains and made({"set": {"training.lora.scale": 1.0}}).trains
    bare = made({"base": ["follow"]}).spec
    assert bare.stage("follow").adapter_name == "follow_on_base" and bare.stage("mention").adapter_name == "mention"


def test_a_bare_stage_runs_without_its_adapter_and_the_others_with_theirs() -> None:
    spec = made({"base": ["follow"]}).spec
    asked: list[GenerationRequest] = []

    def reply(request: GenerationRequest) -> str:
        asked.append(request)
        return " yes"

    engine = BareStages(FakeEngine(reply, adapters=["mention", "link", "answer"]), ["follow_on_base"])
    Runner(spec, engine).run([{"story": "yes A.", "question": "yes?"}])
    assert list(dict.fromkeys(one.adapter for one in asked)) == ["mention", "link", None, "answer"]


def test_every_combination_of_a_grid_is_a_variant_and_all_faults_are_in_one_error() -> None:
    settings = AblateSettings(grid={"training.lora.rank": [2, 4], "training.lora.targets": ["all-linear", ["q", "v"]]})
    names = [varied.name for varied in plan_variants(four(), settings, lambda group: 9)]
    assert names == [f"rank={rank},targets={targets}" for rank in (2, 4) for targets in ("all-linear", "q-v")]
    assert grid_name({"a.b": "x y/z"}) == "b=x-y-z"
    wrong = {
        "a": Variant(drop=["folow"]), "b": Variant(drop=["answer"]), "c": Variant(merge=[["mention", "follow"]]),
        "d": Variant(swap=[["link", "follow"]]), "e": Variant(set={"training.lora.rank": 8}),
        "f": Variant(set={"stages.lnk.retries": 1}), "g": Variant(base=["link"], drop=["follow"]),
        "i": Variant(set={"training.adapters.link.share": 0.9}), "j": Variant(set={"training": {"lora": {"rank": 2}}}),
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        plan_variants(four(), AblateSettings(variants=wrong), lambda group: 9)
    text = str(caught.value)
    for part in (
        "a: no stage 'folow' (did you mean follow?)", "b: 'answer' is the answer's stage",
        "c: ['mention', 'follow'] are not neighbours", "d: stages: stage follow: reads 'link' is a later stage",
        "e: the stack stays what it was", "f: stages.lnk.retries: no 'lnk' there, allowed: mention, link",
        "g: base uses adapters that are trained already", "i: the shares of mention, link, answer sum to 1.6",
        "j: training: this would replace the whole section, allowed: training.KEY, key by key",
    ):  # fmt: skip
        assert part.replace("stages: stage", "stage") in text.replace("(whole file): ", ""), part
    with pytest.raises(ConfigError, match="there is no variant"):
        plan_variants(four(), AblateSettings(), lambda group: 9)


def test_gold_of_every_kind_of_stage_goes_through_a_merge(tmp_path: Path) -> None:
    """An oracle that knows the merged examples answers every question as the whole stack's gold says."""
    write_data(tmp_path)
    spec = StackSpec.model_validate(stack("embedded:base"))
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    for groups in ([["find", "count"]], [["count", "answer"]], [["find", "count", "answer"]]):
        varied = vary(spec, "v", Variant(merge=groups), lambda group: 30)
        file = tmp_path / "merged.jsonl"
        file.write_text("".join(json.dumps(merged_row(spec, row, varied)) + "\n" for row in rows))
        examples = read_examples(file, varied.spec)
        replies: dict[tuple[str | None, str], str] = {}
        for adapter in varied.spec.adapter_names():
            pairs = adapter_pairs(varied.spec, adapter, examples)
            assert ambiguous_prompts(pairs) == 0
            replies |= {(adapter, prompt): completion for prompt, completion in pairs}
        names = varied.spec.adapter_names()
        engine = FakeEngine(lambda request, known=replies: known[request.adapter, request.prompt], adapters=names)
        traces = Runner(varied.spec, engine).run([row["inputs"] for row in rows])
        assert [trace.answer for trace in traces] == [row["answer"] for row in rows]
        assert not any(trace.violations for trace in traces)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    variants = {
        "depth1": {"merge": [["find", "count", "answer"]]}, "bare": {"base": ["count"]},
        "short": {"set": {"stages.count.sampling.max_new_tokens": 1}},
    }  # fmt: skip
    ablate = {"variants": variants, "grid": {"training.lora.rank": [4]}}
    return write_recipe(folder, write_base(folder / "base"), ablate=ablate)


def test_an_ablation_goes_on_after_what_is_there(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = recipe.parent / "out"
    command = ["ablate", str(recipe), "--out", str(out), "--seeds", "0"]
    assert main([*command, "--only", "depth1"]) == 0
    kept = [path for path in out.rglob("*.safetensors")]
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    (out / "ablate" / "result.json").unlink()
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(kept) == 3 and {path: path.stat().st_mtime_ns for path in kept} == stamps
    assert result["systems"] == ["whole", "depth1", "bare", "short", "rank=4"]
    assert set(result["paired_all"]) == {"depth1", "bare", "short", "rank=4"} and "best_single" not in result
    depths = {name: row["depth"] for name, row in result["variants"].items()}
    assert depths == {"depth1": 1, "bare": 2, "short": 2, "rank=4": 2}
    trained = result["trained_params"]
    assert trained["depth1"] == trained["whole"] == trained["bare"] == trained["rank=4"] / 2
    for name, paired in result["paired_all"].items():
        assert {"difference", "ci95", "p_value", "n", "seeds"} <= set(paired) and paired["n"] == 24, name
    for name in ("bare", "short"):  # nothing was trained for them
        assert not (out / "ablate" / name / "seed-0" / "stack").exists()
    assert not (out / "seed-0" / "stack" / "comparators").exists()
    assert main(command) == 0
    assert "whole minus it" in capsys.readouterr().out


def test_a_variant_that_is_another_or_does_not_hold_is_refused_before_anything_is_trained(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ablate", str(recipe), "--out", str(recipe.parent / "out"), "--seeds", "0"]
    assert main([*command, "--set", "ablate.variants.bare={base: [find]}"]) == 2
    assert "change.base.0 was 'count', is 'find'" in capsys.readouterr().err
    assert main([*command, "--set", "ablate.variants.new={drop: [count]}"]) == 2
    error = capsys.readouterr().err  # the answer is a rule on what count says
    assert "new: the examples do not hold for it" in error and "not the value of the last stage answer: 'none'" in error
    assert main([*command, "--only", "bear"]) == 2
    assert "did you mean bare?" in capsys.readouterr().err


def test_a_fault_in_a_variant_leaves_no_folder_that_stands_in_the_way(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ablate", str(recipe), "--out", str(tmp_path / "new"), "--seeds", "0"]
    assert main([*command, "--set", "ablate.variants.new={drop: [answer]}"]) == 2
    assert "'answer' is the answer's stage" in capsys.readouterr().err
    assert main([*command, "--only", "bear"]) == 2
    assert not (tmp_path / "new").exists()


def test_compare_goes_on_in_the_same_folder(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs after the ablation: the stack is there, and only its comparators are trained."""
    out = recipe.parent / "out"
    kept = out / "seed-0" / "stack" / "stages" / "find" / "adapter_model.safetensors"
    stamp = kept.stat().st_mtime_ns
    answers = out / "seed-0" / "answers" / "stack.test.jsonl"
    made_at = answers.stat().st_mtime_ns
    command = ["compare", str(recipe), "--out", str(out), "--seeds", "0", "--systems", "single_direct,stack"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert kept.stat().st_mtime_ns == stamp and answers.stat().st_mtime_ns == made_at
    assert result["accuracy"]["stack"] == json.loads((out / "ablate" / "result.json").read_text())["accuracy"]["whole"]
