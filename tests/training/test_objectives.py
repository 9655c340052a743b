"""Each objective is the loss it says: held against the same loss written out by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cairn.config import parse_config
from cairn.errors import ConfigError
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.training.distill_logits import Distill, DistillLogitsConfig, coarse_divergence
from cairn.training.hybrid import Hybrid, HybridConfig
from cairn.training.multi_token import MultiToken, MultiTokenConfig
from cairn.training.next_thought import NextThought, NextThoughtConfig
from cairn.training.objectives import NextToken, WithModelLoss, head_logits, next_token

VOCABULARY, END = 40, 2


def tiny(**changes):
    torch.manual_seed(0)
    return CairnForCausalLM(CairnConfig(**{
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, **changes,
    }))


def numbers(rows=4, length=12, seed=0):
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, (rows, length + 1))
    return {"input_ids": ids[:, :-1].copy(), "labels": ids[:, 1:].copy()}


def tensors(batch):
    return {name: torch.from_numpy(values) for name, values in batch.items()}


@pytest.mark.parametrize("changes", [{}, {"logit_softcap": 5.0}, {"tie_word_embeddings": False}])
def test_head_on_the_final_states_gives_the_models_own_logits(changes):
    model, ids = tiny(**changes), torch.from_numpy(numbers()["input_ids"])
    assert torch.equal(head_logits(model, model.get_decoder()(input_ids=ids).last_hidden_state), model(ids).logits)


def test_what_the_decoder_asks_for_is_added_per_target():
    model, batch = tiny(), tensors(numbers())
    batch["labels"][0, :5] = -100
    plain, _ = NextToken()(model, batch)
    assert torch.equal(WithModelLoss(NextToken())(model, batch)[0], plain)
    model.model.aux_loss = torch.tensor(0.25)
    loss, metrics = WithModelLoss(NextToken())(model, batch)
    assert loss.item() == pytest.approx(plain.item() + 0.25 * 43, rel=1e-6)
    assert metrics["model_loss"].item() == 0.25 * 43 and torch.equal(metrics["next_token_loss"], plain)


# multi-token ---------------------------------------------------------------------------------------------------------


def test_heads_begin_as_the_identity_and_predict_what_comes_later():
    model, batch = tiny(), numbers()
    objective = MultiToken(MultiTokenConfig(kind="multi_token", ahead=3, weight=0.5), 32, steps=10)
    loss, metrics = objective(model, tensors(objective.prepare(batch, 0, 0)))
    logits, labels = model(torch.from_numpy(batch["input_ids"])).logits, torch.from_numpy(batch["labels"])
    plain, _ = next_token(model, tensors(batch))
    later = [F.cross_entropy(logits[:, :-n].flatten(0, 1), labels[:, n:].flatten(), reduction="sum") for n in (1, 2, 3)]
    assert loss.item() == pytest.approx((plain + 0.5 * sum(later)).item(), rel=1e-5)
    assert metrics["next_token_loss"].item() == pytest.approx(plain.item(), rel=1e-6)
    assert [metrics[f"ahead_{n}_loss"].item() for n in (1, 2, 3)] == pytest.approx([one.item() for one in later])
    loss.backward()
    assert all(head.outer.weight.grad.abs().sum() > 0 for head in objective.heads)


@pytest.mark.parametrize(
    ("curriculum", "expected"),
    [("constant", [2] * 6), ("forward", [0, 0, 1, 1, 2, 2]), ("reverse", [2, 2, 1, 1, 0, 0])],
)  # fmt: skip
def test_curriculum_adds_or_drops_a_head_at_equal_distances(curriculum, expected):
    objective = MultiToken(MultiTokenConfig(kind="multi_token", ahead=2, curriculum=curriculum), 32, steps=6)
    assert [objective.active(step) for step in range(6)] == expected
    batch = tensors(objective.prepare(numbers(), 0, 0))
    if not expected[0]:
        assert torch.equal(objective(tiny(), batch)[0], NextToken()(tiny(), batch)[0])


# causal and masked ---------------------------------------------------------------------------------------------------


def hybrid(rows=4, length=12, **settings):
    config = HybridConfig(kind="hybrid", **{"masked_share": 0.5, **settings})
    return Hybrid(config, mask_id=0, vocab_size=VOCABULARY, steps=5, batch_rows=rows, sequence_length=length, seed=7)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hybrid_is_the_mean_of_each_kind_by_its_share_of_the_rows(attention):
    model, before = tiny(), numbers()
    model.set_attn_implementation(attention)
    objective = hybrid(masked_share=0.25)
    batch = objective.prepare(before, 2, 0)
    assert batch["bidirectional"].tolist() == [False, False, False, True]
    loss, metrics = objective(model, tensors(batch))
    causal, _ = next_token(model, tensors({name: before[name][:3] for name in before}))
    full = torch.zeros(1, 1, 12, 12)  # nothing is hidden from any position
    logits = model(torch.from_numpy(batch["input_ids"][3:]), attention_mask=full).logits[0]
    masked = F.cross_entropy(logits, torch.from_numpy(batch["labels"][3]))
    targets = (batch["labels"] != -100).sum()  # what the loop divides by
    assert loss.item() / targets == pytest.approx(0.75 * causal.item() / 36 + 0.25 * masked.item(), rel=1e-5)
    assert metrics["causal_loss"].item() / targets == pytest.approx(causal.item() / 36, rel=1e-5)
    assert metrics["masked_loss"].item() / targets == pytest.approx(masked.item(), rel=1e-5)


def test_masked_rows_hide_what_they_predict_and_causal_rows_stay():
    before, objective = numbers(rows=8, length=100), hybrid(rows=8, length=100, hidden_start=0.3, hidden_end=0.1)
    first, last = objective.prepare(before, 0, 0), objective.prepare(before, 4, 0)
    for batch, hidden in ((first, 30), (last, 10)):
        causal = ~batch["bidirectional"]
        assert (batch["input_ids"][causal] == before["input_ids"][causal]).all()
        assert (batch["labels"][causal] == before["labels"][causal]).all() and causal.sum() == 4
        for row in np.flatnonzero(batch["bidirectional"]):
            asked = np.flatnonzero(batch["labels"][row] != -100)
            assert len(asked) == hidden and asked.max() < 99  # the last label stands nowhere in the row
            assert (batch["labels"][row, asked] == before["input_ids"][row, asked + 1]).all()
            others = np.setdiff1d(np.arange(100), asked + 1)
            assert (batch["input_ids"][row, others] == before["input_ids"][row, others]).all()
    shown = np.concatenate([
        np.where(first["labels"][row, :-1] != -100, first["input_ids"][row, 1:], -1)
        for row in np.flatnonzero(first["bidirectional"])
    ])
    kinds = shown[shown >= 0]
    assert 0.7 < (kinds == 0).mean() < 0.95


def test_what_is_hidden_depends_on_step_and_row_alone():
    before, objective = numbers(rows=8), hybrid(rows=8)
    whole = objective.prepare(before, 3, 0)
    parts = [objective.prepare({name: before[name][at : at + 2] for name in before}, 3, at) for at in (0, 2, 4, 6)]
    for name in whole:
        assert (np.concatenate([part[name] for part in parts]) == whole[name]).all()
    assert (objective.prepare(before, 4, 0)["input_ids"] != whole["input_ids"]).any()


def test_no_causal_row_sees_what_follows():
    model, objective = tiny().eval(), hybrid()
    batch = tensors(objective.prepare(numbers(), 0, 0))
    losses = []
    for token in (5, 6):  # the last input of a causal row: only its own label's loss may move
        batch["input_ids"][0, -1] = token
        batch["labels"][0, -1] = -100
        losses.append(objective(model, {name: values[:1] for name, values in batch.items()})[0].item())
    assert losses[0] == losses[1]


# next thought --------------------------------------------------------------------------------------------------------


def test_next_thought_is_the_distance_to_the_mean_of_the_following_states():
    model, batch = tiny(), numbers(rows=2, length=10)
    batch["input_ids"][0, 4] = END
    objective = NextThought(NextThoughtConfig(kind="next_thought", span=3, weight=0.2), 32, END)
    loss, metrics = objective(model, tensors(batch))
    states = model.get_decoder()(input_ids=torch.from_numpy(batch["input_ids"])).last_hidden_state.detach()
    expected = 0.0
    for row in range(2):
        for place in range(10 - 3):
            if END in batch["input_ids"][row, place : place + 3]:  # the span would reach into another document
                continue
            target = states[row, place + 1 : place + 4].mean(0)
            expected += 1 - F.cosine_similarity(objective.heads(states[row, place]), target, dim=0).item()
    assert metrics["thought_loss"].item() == pytest.approx(expected, rel=1e-4)
    plain, _ = next_token(model, tensors(batch))
    assert loss.item() == pytest.approx(plain.item() + 0.2 * expected, rel=1e-5)


def test_no_gradient_flows_into_the_target():
    model, objective = tiny(), NextThought(NextThoughtConfig(kind="next_thought", span=4), 32, END)
    hidden = torch.randn(1, 8, 32, requires_grad=True)
    model.get_decoder = lambda: lambda **kwargs: type("Out", (), {"last_hidden_state": hidden})
    objective(model, tensors(numbers(rows=1, length=8)))[1]["thought_loss"].backward()
    assert hidden.grad[:, :4].abs().sum() > 0 and hidden.grad[:, 4:].abs().sum() == 0


# distillation --------------------------------------------------------------------------------------------------------


def kept(logits, k, temperature):
    logprobs = F.log_softmax(logits / temperature, -1)
    top, ids = logprobs.topk(k, -1)
    rest = (1 - top.exp().sum(-1)).clamp(min=1e-9).log()
    return ids, top, None if k == logits.shape[-1] else rest


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_with_the_whole_vocabulary_it_is_the_divergence_of_torch(direction, temperature):
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 5, 30, generator=generator), 2 * torch.randn(2, 5, 30, generator=generator)
    ours = coarse_divergence(student, *kept(teacher, 30, temperature), temperature, direction)
    one, other = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    pair = (one, other) if direction == "forward" else (other, one)
    assert torch.allclose(ours, F.kl_div(*pair, reduction="none", log_target=True).sum(-1), atol=1e-5)
    coarse = coarse_divergence(student, *kept(teacher, 6, temperature), temperature, direction)
    assert (coarse <= ours + 1e-5).all() and (coarse >= -1e-6).all()
    same = coarse_divergence(teacher, *kept(teacher, 6, temperature), temperature, direction)
    assert same.abs().max() < 1e-5


def test_distillation_weighs_text_and_teacher_and_moves_the_weight():
    model, batch = tiny(), numbers()
    config = DistillLogitsConfig(kind="distill", teacher="x", top_k=5, temperature=2.0, weight=0.8, weight_end=1.0)
    objective = Distill(config, VOCABULARY, steps=3)
    ids, top, rest = kept(torch.randn(4, 12, VOCABULARY), 5, 2.0)
    batch |= {"teacher_ids": ids.numpy(), "teacher_logprobs": top.numpy(), "teacher_rest": rest.numpy()}
    for step, weight in enumerate((0.8, 0.9, 1.0)):
        loss, metrics = objective(model, tensors(objective.prepare(batch, step, 0)))
        logits = model(torch.from_numpy(batch["input_ids"])).logits
        divergence = 4 * coarse_divergence(logits, ids, top, rest, 2.0, "forward").sum().item()
        text = next_token(model, tensors(batch))[0].item()
        assert metrics["divergence"].item() == pytest.approx(divergence, rel=1e-5)
        assert loss.item() == pytest.approx((1 - weight) * text + weight * divergence, rel=1e-5)


def test_a_teacher_that_would_not_be_heard_is_refused():
    with pytest.raises(ConfigError, match="weight is 0 throughout: the teacher would not be heard"):
        parse_config(DistillLogitsConfig, {"kind": "distill", "teacher": "x", "weight": 0}, "test")
