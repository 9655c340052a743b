"""Pairs from a stack's own answers: real prompts, and targets only where they can still be right. No model needed."""

import pytest

from cairn.data.examples import StackExample, TextPair, adapter_pairs, gold_fields
from cairn.engines.fake_engine import FakeEngine
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec
from cairn.training.finetune_plan import OnPolicy, OwnAnswers, RightChains
from cairn.verbs.finetuning.finetune_pairs import OwnPair, mix, reading_stages
from cairn.verbs.finetuning.own_answers import Answered, answer_facts
from cairn.verbs.finetuning.own_pairs import on_policy_pairs, right_chain_pairs

YES_NO = {"kind": "choices", "values": ["yes", "no"]}
MAP = {"kind": "map", "over": "story", "split": "sentences", "keep": "yes", "join": " ", "contract": YES_NO}
SPEC = StackSpec.model_validate(
    {
        "name": "where",
        "inputs": ["story", "question"],
        "stages": [
            {"name": "mention", **MAP, "prompt": "{question}\n{item}\nAbout:", "retries": 0},
            {"name": "link", "reads": ["mention"], "prompt": "{mention}\n{question}\nWho:", "retries": 0,
             "contract": {"kind": "copied_from_input", "fields": ["mention", "question"]}},
            {"name": "follow", **MAP, "reads": ["link"], "prompt": "{link}\n{item}\nAbout:", "adapter": "mention",
             "retries": 0},
            {"name": "answer", "reads": ["follow"], "prompt": "{follow}\n{question}\nWhere:", "retries": 0},
        ],
    }
)  # fmt: skip
MILK = "Where is the milk?"


def example(name, sentences, mention, link, follow, answer, question=MILK):
    stages = {"mention": tuple(mention.split()), "link": link, "follow": tuple(follow.split()), "answer": answer}
    return StackExample(name, {"story": " ".join(sentences), "question": question}, stages, answer)


TOOK_A, TOOK_B, HOME, AWAY = "Ann took the milk.", "Bob took the milk.", "Ann went home.", "Bob went away."
A = example("a", [TOOK_A, HOME, AWAY], "yes no no", "Ann", "yes yes no", "home")
B = example("b", [TOOK_B, HOME, AWAY], "yes no no", "Bob", "yes no yes", "away")


def answered(examples, wrong, spec=SPEC):
    """Runs a stack that says what gold says, but for the prompts in `wrong`, and "no" where gold says nothing."""
    pairs = [pair for name in spec.adapter_names() for pair in adapter_pairs(spec, name, examples)]
    gold = {pair.prompt: pair.completion for pair in pairs}
    engine = FakeEngine(
        lambda request: wrong.get(request.prompt) or gold.get(request.prompt, " no"), adapters=spec.adapter_names()
    )
    traces = Runner(spec, engine).run([one.inputs for one in examples], ids=[one.id for one in examples])
    return [Answered(one, gold_fields(spec, one), trace) for one, trace in zip(examples, traces, strict=True)]


def on_policy(examples, wrong, spec=SPEC, fits=lambda pair: True, **settings):
    return on_policy_pairs(spec, examples, answered(examples, wrong, spec), OnPolicy(**settings), fits)


def taken(own, adapter):
    return [tuple(one.pair) for one in own.of(adapter)]


def test_stages_that_read_a_hand_off_are_found_with_their_adapters():
    assert reading_stages(SPEC) == {"link": "link", "follow": "mention", "answer": "answer"}


def test_a_stack_that_is_right_gives_no_pairs():
    own = on_policy([A, B], {})
    assert not any(own.of(name) for name in SPEC.adapter_names())
    assert own.facts() == {"link": {"as_gold": 2}, "follow": {"as_gold": 6}, "answer": {"as_gold": 2}}


def test_a_real_hand_off_is_trained_with_the_gold_target():
    too_much = {f"{MILK}\n{AWAY}\nAbout:": " yes", f"{TOOK_A} {AWAY}\n{MILK}\nWho:": " Ann"}
    own = on_policy([A], too_much)
    assert taken(own, "link") == [(f"{TOOK_A} {AWAY}\n{MILK}\nWho:", " Ann")]
    assert own.facts()["link"] == {"taken": 1}
    assert own.facts()["follow"] == {"as_gold": 3} and own.facts()["answer"] == {"as_gold": 1}


def test_a_target_that_its_contract_no_longer_allows_is_left_out():
    nothing = {f"{MILK}\n{TOOK_A}\nAbout:": " no"}
    own = on_policy([A], nothing)
    assert own.facts()["link"] == {"breaks_contract": 1} and taken(own, "link") == []


def test_a_target_that_copies_what_is_gone_is_left_out():
    own = on_policy([A], {f"Ann\n{HOME}\nAbout:": " no"})  # follow loses the sentence with the answer
    assert own.facts()["answer"] == {"copies_what_is_gone": 1} and taken(own, "answer") == []
    kept = on_policy([A], {f"Ann\n{AWAY}\nAbout:": " yes"})  # follow keeps one too many: the answer still stands there
    assert taken(kept, "answer") == [(f"{TOOK_A} {HOME} {AWAY}\n{MILK}\nWhere:", " home")]


def test_a_target_that_depends_on_the_hand_off_is_left_out():
    own = on_policy([A, B], {f"{TOOK_A}\n{MILK}\nWho:": " milk"})
    # "Ann went home." is kept for Ann and not for Bob: for milk, nobody knows. "Ann took the milk." only ever was kept.
    assert taken(own, "mention") == [(f"milk\n{TOOK_A}\nAbout:", " yes")]
    assert own.of("mention")[0].stage == "follow" and own.of("mention")[0].kept is True
    assert own.facts()["follow"] == {"as_gold": 3, "depends_on_hand_off": 2, "taken": 1}


def test_gold_wins_over_a_target_that_contradicts_it():
    own = on_policy([A, B], {f"{TOOK_A}\n{MILK}\nWho:": " Bob"})
    counts = own.facts()["follow"]  # for Bob, gold says no to Ann's sentences and yes to his
    assert counts["contradicts_gold"] == 2 and counts["taken"] == 1
    assert taken(own, "mention") == [(f"Bob\n{TOOK_A}\nAbout:", " yes")], "gold never met this prompt"


def test_two_targets_for_one_real_prompt_cancel_each_other():
    one = example("c", [TOOK_A, TOOK_B], "yes no", "Ann", "yes no", "Ann")
    two = example("d", [TOOK_A, TOOK_B], "no yes", "Bob", "no yes", "Bob")
    both = {f"{MILK}\n{TOOK_A}\nAbout:": " yes", f"{MILK}\n{TOOK_B}\nAbout:": " yes"}
    own = on_policy([one, two], both)
    assert taken(own, "link") == []
    assert own.facts()["link"] == {"contradict_each_other": 2, "taken": 0}


def test_only_the_stages_asked_for_and_only_what_fits():
    too_much = {f"{MILK}\n{AWAY}\nAbout:": " yes", f"Ann\n{AWAY}\nAbout:": " yes"}
    too_much[f"{TOOK_A} {AWAY}\n{MILK}\nWho:"] = " Ann"
    own = on_policy([A], too_much, stages=["answer"])
    assert list(own.facts()) == ["answer"] and len(own.of("answer")) == 1 and not own.of("link")
    small = on_policy([A], too_much, fits=lambda pair: len(pair.prompt) < 60)
    assert small.facts()["answer"] == {"too_long": 1} and not small.of("answer")


LOOP = StackSpec.model_validate(
    {
        "name": "walk",
        "inputs": ["text"],
        "stages": [
            {"name": "steps", "prompt": "{text}\nSteps:", "retries": 0},
            {"name": "each", "kind": "map", "over": "steps", "reads": ["steps"], "prompt": "{item}!", "retries": 0},
            {"name": "walk", "kind": "repeat", "over": "each", "reads": ["each"], "start": "home", "retries": 0,
             "prompt": "{state} {item}\nThen:"},
        ],
    }
)  # fmt: skip
WALK = StackExample(
    "w", {"text": "left, right"},
    {"steps": "left\nright", "each": ("west", "east"), "walk": ("home west", "home west east")}, "home west east",
)  # fmt: skip


def test_items_and_states_without_gold_are_left_out():
    own = on_policy([WALK], {"left, right\nSteps:": " left\nleft\nup"}, spec=LOOP)
    assert own.facts()["each"] == {"as_gold": 2, "no_gold_call": 1}, "an item is known by its text"
    walked = on_policy([WALK], {"home west\nThen:": " lost"}, spec=LOOP)
    assert walked.facts()["walk"] == {"as_gold": 1, "no_gold_call": 1}, "a state that is not gold has no gold target"


def test_chains_that_end_right_give_their_own_hand_offs():
    wrong = {f"{MILK}\n{HOME}\nAbout:": " yes", f"{TOOK_A} {HOME}\n{MILK}\nWho:": " Ann"}
    runs = answered([A, B], {**wrong, f"{TOOK_B} {HOME}\n{MILK}\nWho:": " Ann"})
    assert [one.right(SPEC) for one in runs] == [True, False]
    for choice, mention, replaced in (
        ("both", [(f"{MILK}\n{HOME}\nAbout:", " yes")], set()),
        ("gold", [], set()),
        ("own", [(f"{MILK}\n{HOME}\nAbout:", " yes")], {f"{MILK}\n{HOME}\nAbout:"}),
    ):
        own = right_chain_pairs(SPEC, [A, B], runs, RightChains(where_gold_differs=choice), lambda pair: True)
        assert taken(own, "mention") == mention and own.replaced["mention"] == replaced
        assert taken(own, "link") == [(f"{TOOK_A} {HOME}\n{MILK}\nWho:", " Ann")], "b ended wrong: nothing of it"
        assert own.facts()["answer"] == {"as_gold": 1}
    assert own.facts()["follow"] == {"as_gold": 3}
    facts = answer_facts(SPEC, runs)
    assert (facts["questions"], facts["right"], facts["too_long"], facts["calls"]) == (2, 1, 0, 16)


def test_what_breaks_a_contract_is_not_learnt_from_a_right_chain():
    runs = answered([A], {f"{MILK}\n{AWAY}\nAbout:": " perhaps"})
    assert runs[0].right(SPEC)
    own = right_chain_pairs(SPEC, [A], runs, RightChains(), lambda pair: True)
    assert own.facts()["mention"] == {"as_gold": 2, "breaks_contract": 1} and not own.of("mention")


def of_gold(count):
    return [TextPair(f"g{number}", " x") for number in range(count)]


def of_own(count):
    return [OwnPair("answer", TextPair(f"o{number}", " x")) for number in range(count)]


@pytest.mark.parametrize(
    ("gold", "own", "settings", "seen", "in_round"),
    [
        (1000, 30, {"mix": 0.5}, 200, (100, 100)),  # half of what is seen, however many gold pairs there are
        (1000, 30, {"mix": 0.25}, 200, (150, 50)),
        (1000, 10, {"mix": 0.5, "repeat": 4}, 200, (160, 40)),  # few are not learnt by heart
        (1000, 500, {"mix": 0.5}, 200, (100, 100)),  # many are drawn from
        (40, 30, {"mix": 0.5}, 200, (40, 40)),  # little gold: several epochs of both
        (40, 10, {"mix": 0.5, "repeat": 4}, 200, (40, 10)),  # 5 epochs, each own pair 4 times in 200
        (1000, 0, {}, 200, (1000, 0)),
        (0, 30, {}, 200, (0, 30)),
    ],
)
def test_own_pairs_have_their_share_of_what_a_round_sees(gold, own, settings, seen, in_round):
    pairs, mine = of_gold(gold), of_own(own)
    made, counts = mix(pairs, mine, OwnAnswers(**settings), seen=seen)
    assert (counts["gold"], counts["own"], counts["distinct"]) == (*in_round, own)
    there = {pair: made.count(pair) for pair in made}
    assert [pair for pair in pairs if pair in there] == made[: in_round[0]], "gold pairs in their order, each once"
    times = [there.get(one.pair, 0) for one in mine]
    assert sum(times) == in_round[1] and (not times or max(times) - min(times) <= 1)
    assert made == mix(pairs, mine, OwnAnswers(**settings), seen=seen)[0]


def test_balance_holds_for_own_pairs_too():
    mine = [OwnPair("follow", TextPair(str(number), " no"), kept=False) for number in range(50)]
    mine += [OwnPair("follow", TextPair(f"y{number}", " yes"), kept=True) for number in range(4)]
    made, counts = mix(of_gold(50), mine, OwnAnswers(), seen=20, balance=1.5)
    assert counts["distinct"] == 4 + 6
    assert sum(pair.completion == " no" for pair in made) == 6 and sum(pair.completion == " yes" for pair in made) == 4
