"""The budget of a stack over phases and adapters: sums to the token, one rule for every share, faults by name."""

import pytest

from cairn.errors import ConfigError
from cairn.training.finetune_plan import ALL_STAGES, adapter_lora, stack_training
from cairn.training.phases import comparator_config, plan_phases

ADAPTERS = ["first", "second", "third"]
READERS = {"two": "second", "three": "third"}
SWITCHES = [
    {},
    {"global_first": 0.3},
    {"on_policy": {"share": 0.2}},
    {"keep_right_chains": True},
    {"global_first": {"share": 0.17}, "on_policy": 0.33, "keep_right_chains": {"share": 0.21}, "handoff_dropout": 0.1},
]
SHARES = [None, [0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]]


def settings(section, shares=None, **plans):
    plans = {name: {**plans.get(name, {}), **({"share": share} if share else {})}
             for name, share in zip(ADAPTERS, shares or [None] * 3, strict=True)}  # fmt: skip
    return stack_training({**section, "adapters": plans}, ADAPTERS, "stack.yaml", READERS)


def refused(section, **plans):
    with pytest.raises(ConfigError) as error:
        settings(section, **plans)
    return str(error.value)


@pytest.mark.parametrize("section", SWITCHES, ids=str)
@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("total", [1000, 99_999, 420_000, 1_234_567])
def test_all_budgets_sum_to_the_total_and_the_comparators_get_the_same(section, shares, total):
    training = settings({**section, "tokens_total": total}, shares)
    phases = plan_phases(training, ADAPTERS, READERS)
    assert sum(config.tokens for phase in phases for config in phase.configs.values()) == total
    assert comparator_config(training, "single_chain", ADAPTERS).tokens == total
    own = {name: sum(p.configs[name].tokens for p in phases if name in p.configs) for name in ADAPTERS}
    rest = total - sum(phase.configs[ALL_STAGES].tokens for phase in phases if ALL_STAGES in phase.configs)
    for name, share in zip(ADAPTERS, shares or SHARES[2], strict=True):
        assert abs(own[name] - rest * share) <= 1


def test_phases_come_in_order_with_their_own_seeds_and_learning_rates():
    section = {"global_first": {"share": 0.2, "learning_rate": 0.005}, "on_policy": {"learning_rate": 0.001}}
    training = settings({**section, "keep_right_chains": 0.1, "seed": 7, "learning_rate": 0.002})
    phases = {phase.name: phase for phase in plan_phases(training, ADAPTERS, READERS)}
    assert list(phases) == ["global", "gold", "on_policy", "right_chains"]
    rates = {name: {config.learning_rate for config in phase.configs.values()} for name, phase in phases.items()}
    assert rates == {"global": {0.005}, "gold": {0.002}, "on_policy": {0.001}, "right_chains": {0.002}}
    seeds = {name: {config.seed for config in phase.configs.values()} for name, phase in phases.items()}
    assert seeds == {"global": {7}, "gold": {7}, "on_policy": {8}, "right_chains": {9}}
    assert phases["gold"].answers is None and phases["on_policy"].answers.questions == 500


def test_an_adapter_that_reads_no_hand_off_spends_its_share_on_gold():
    [gold, on_policy] = plan_phases(settings({"tokens_total": 900, "on_policy": 0.5}), ADAPTERS, READERS)
    assert {name: config.tokens for name, config in on_policy.configs.items()} == {"second": 150, "third": 150}
    assert {name: config.tokens for name, config in gold.configs.items()} == {"first": 300, "second": 150, "third": 150}
    only_three = settings({"tokens_total": 900, "on_policy": {"share": 0.5, "stages": ["three"]}})
    assert list(plan_phases(only_three, ADAPTERS, READERS)[1].configs) == ["third"]


def test_switches_can_be_turned_off_and_given_short():
    training = settings({"on_policy": False, "global_first": None, "keep_right_chains": 0.1})
    assert training.on_policy is None and training.global_first is None
    assert training.keep_right_chains.share == 0.1 and training.keep_right_chains.where_gold_differs == "both"
    assert stack_training(training.model_dump(mode="json"), ADAPTERS, "again", READERS) == training


def test_an_adapter_may_have_a_shape_of_its_own():
    training = settings(
        {"lora": {"rank": 8, "scale": 1.0}},
        first={"rank": 2, "targets": ["q_proj"]}, second={"scale": 4.0, "dropout": 0.1},
    )  # fmt: skip
    shapes = {name: adapter_lora(training, name) for name in ADAPTERS}
    assert (shapes["first"].rank, shapes["first"].targets, shapes["first"].scale) == (2, ["q_proj"], 1.0)
    assert (shapes["second"].rank, shapes["second"].scale, shapes["second"].dropout) == (8, 4.0, 0.1)
    assert shapes["third"] == training.lora
    [gold] = plan_phases(training, ADAPTERS, READERS)
    assert {name: config.lora for name, config in gold.configs.items()} == shapes
    assert comparator_config(training, "single_chain", ADAPTERS).lora.rank == 18


@pytest.mark.parametrize(
    ("section", "plans", "fault"),
    [
        ({"global_first": 0.3}, {"first": {"rank": 4}},
         "global_first: rank differs (first 4, second 8, third 8), allowed: the same rank for all adapters"),
        ({"global_first": 0.3}, {"third": {"targets": ["q_proj"]}}, "global_first: targets differs (first all-linear"),
        ({"on_policy": 0.6, "keep_right_chains": 0.4}, {},
         "shares of on_policy and keep_right_chains sum to 1, allowed: less than 1, because gold comes first"),
        ({"on_policy": {"stages": ["tow"]}}, {}, "on_policy.stages: 'tow' (did you mean two?), allowed: two, three"),
        ({"on_policy": {"stages": []}}, {}, "on_policy.stages: is empty, allowed: two, three"),
        ({"global_first": 1.5}, {}, "global_first.share: 1.5: input should be less than 1"),
        ({"on_policy": {"shar": 1}}, {}, "on_policy.shar: unknown key (did you mean share?), allowed: share"),
        ({"handoff_dropout": 1.0}, {}, "handoff_dropout: 1.0: input should be less than 1"),
    ],
)  # fmt: skip
def test_faults_are_named(section, plans, fault):
    assert fault in refused(section, **plans)


def test_names_that_would_collide_or_say_nothing_are_refused():
    with pytest.raises(ConfigError, match="adapter 'single_direct' has the name of a comparator"):
        stack_training({}, ["single_direct"], "stack.yaml")
    with pytest.raises(ConfigError, match="on_policy: no stage with an adapter reads a hand-off"):
        stack_training({"on_policy": True}, ADAPTERS, "stack.yaml", {})


def test_an_adapter_and_a_comparator_may_have_a_method_of_their_own():
    section = {
        "tokens_total": 1000, "batch_tokens": 700, "on_policy": {"share": 0.5, "learning_rate": 1e-4},
        "comparators": {"single_chain": {"batch_tokens": 900}},
    }  # fmt: skip
    training = settings(section, second={"batch_tokens": 60, "learning_rate": 5e-3})
    gold, later = plan_phases(training, ADAPTERS, READERS)
    assert (gold.configs["second"].batch_tokens, gold.configs["second"].learning_rate) == (60, 5e-3)
    assert (gold.configs["first"].batch_tokens, gold.configs["first"].learning_rate) == (700, training.learning_rate)
    assert (later.configs["second"].batch_tokens, later.configs["second"].learning_rate) == (60, 1e-4)  # the round's
    assert comparator_config(training, "single_chain", ADAPTERS).batch_tokens == 900
    assert comparator_config(training, "single_direct", ADAPTERS).batch_tokens == 700
    assert "single_both" in refused({"comparators": {"single_both": {"batch_tokens": 9}}})
