"""Batches and loss of fine-tuning: only completions count, and the short way over the head is the plain loss."""

import numpy as np
import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from cairn.errors import DataError
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.tokenization import completion_ids, prompt_ids, train_bpe
from cairn.prompts import completion_text, render
from cairn.training.batching import IGNORED, EncodedPair, PairBatches, encode_pairs, pad_pairs
from cairn.training.completions import (
    choose_objective,
    completion_scores,
    greedy_text,
)
from cairn.training.objectives import completion, next_token, target_logits

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "cairn": lambda: CairnForCausalLM(CairnConfig(**SHAPE, num_key_value_heads=2, qk_norm=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0)),
}


def random_pairs(count=12, seed=0):
    draw = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        prompt, completion = int(draw.integers(2, 20)), int(draw.integers(1, 4))
        pairs.append(EncodedPair(draw.integers(3, 64, prompt + completion), prompt))
    return pairs


def tensors(batch):
    return {key: torch.from_numpy(value) for key, value in batch.items()}


def built(name):
    torch.manual_seed(0)
    return MODELS[name]()


@pytest.mark.parametrize("name", MODELS)
def test_short_way_over_the_head_is_the_plain_loss_with_the_same_gradients(name):
    model = built(name)
    pairs = random_pairs()
    batch = tensors(pad_pairs(pairs, 0))
    objective = choose_objective(model, batch)
    assert objective is (next_token if name == "granite" else completion), "granite scales its logits after the head"
    loss, _ = objective(model, batch)
    count = sum(pair.targets for pair in pairs)
    (loss / count).backward()
    gradients = {key: value.grad.clone() for key, value in model.named_parameters()}
    model.zero_grad()

    whole = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(pair.ids) for pair in pairs], batch_first=True)
    labels = whole.clone()  # Hugging Face's own way: labels unshifted, attention mask, mean loss
    for row, pair in enumerate(pairs):
        labels[row, : pair.prompt_length] = IGNORED
        labels[row, len(pair.ids) :] = IGNORED
    mask = torch.tensor([[int(i < len(pair.ids)) for i in range(whole.shape[1])] for pair in pairs])
    plain = model(input_ids=whole, attention_mask=mask, labels=labels).loss
    plain.backward()
    assert torch.allclose(loss / count, plain, atol=1e-5)
    for key, value in model.named_parameters():
        assert torch.allclose(gradients[key], value.grad, atol=1e-5), key


def test_only_the_completion_counts():
    """The loss of a batch is the sum over its completions, each predicted from everything before it."""
    model = built("llama")
    pairs = random_pairs()
    batch = tensors(pad_pairs(pairs, 0))
    separate = 0.0
    for row, pair in enumerate(pairs):
        assert batch["labels"][row].tolist().count(IGNORED) == batch["labels"].shape[1] - pair.targets
        logits = model(input_ids=torch.from_numpy(pair.ids)[None]).logits[0].log_softmax(-1)
        for place in range(pair.prompt_length, len(pair.ids)):
            separate -= logits[place - 1, pair.ids[place]].item()
    assert completion(model, batch)[0].item() == pytest.approx(separate, rel=1e-4)


def test_padding_changes_nothing():
    model = built("cairn").eval()
    pairs = random_pairs()
    other = pad_pairs(pairs, 9)
    assert not np.array_equal(other["input_ids"], pad_pairs(pairs, 0)["input_ids"])
    first, _ = completion(model, tensors(pad_pairs(pairs, 0)))
    second, _ = completion(model, tensors(other))
    assert torch.allclose(first, second, atol=1e-4)


def test_exact_match_is_what_greedy_decoding_writes():
    """Half the pairs get the model's own greedy continuation as their completion."""
    model = built("llama").eval()
    pairs = []
    for number, pair in enumerate(random_pairs(16, seed=1)):
        prompt = torch.from_numpy(pair.ids[: pair.prompt_length])[None]
        made = model.generate(prompt, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)[0].numpy()
        if number % 2:
            made[-1] = (made[-1] + 1) % 64
        pairs.append(EncodedPair(made, pair.prompt_length))
    for batch_tokens in (1, 50, 10_000):
        assert completion_scores(model, pairs, batch_tokens=batch_tokens, pad_id=0)["exact_match"] == 0.5
    one = completion_scores(model, pairs, batch_tokens=1, pad_id=0)["loss"]
    assert one == pytest.approx(completion_scores(model, pairs, batch_tokens=10_000, pad_id=0)["loss"], rel=1e-4)


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["The cup is in the kitchen. Ann took it, Bob did not. yes no " * 20], 400)


def test_pairs_are_encoded_as_serving_does(tokenizer):
    """The ids in training are the ids that serving makes from the same fields, and end with the end marker."""
    prompt = render("Story: {story}\nNeeded: ", {"story": "Ann took the cup."})
    [pair] = encode_pairs(tokenizer, [(prompt, completion_text("yes"))], 64)
    served = prompt_ids(tokenizer, prompt)
    assert pair.ids[: pair.prompt_length].tolist() == served
    assert pair.ids[pair.prompt_length :].tolist() == completion_ids(tokenizer, " yes")
    assert pair.ids[-1] == tokenizer.eos_token_id and pair.ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(pair.ids[pair.prompt_length :], skip_special_tokens=True) == " yes"


def test_pairs_longer_than_the_context_are_counted_and_the_longest_shown(tokenizer):
    pairs = [("Ann", " yes"), ("The cup is in the kitchen. " * 9, " no"), ("Bob took the cup. " * 20, " yes")]
    longest = max(len(prompt_ids(tokenizer, p)) + len(completion_ids(tokenizer, c)) for p, c in pairs)
    with pytest.raises(DataError) as error:
        encode_pairs(tokenizer, pairs, 20)
    text = str(error.value)
    assert f"2 of 3 training pairs are longer than the base's context of 20 tokens; the longest has {longest}" in text
    assert "Bob took the cup." in text and "shorten the stage's input" in text
    with pytest.raises(DataError, match="no training pairs"):
        encode_pairs(tokenizer, [], 20)


def test_batches_are_a_pure_function_of_the_step():
    pairs = random_pairs(50)
    plan = {"batch_tokens": 60, "tokens": 3000, "seed": 5}
    first, second = PairBatches(pairs, **plan), PairBatches(pairs, **plan)
    forward = [first.batch(step) for step in range(first.steps)]
    for step in reversed(range(second.steps)):
        for key, value in second.batch(step).items():
            assert np.array_equal(value, forward[step][key])
    other = PairBatches(pairs, **{**plan, "seed": 6})
    assert any(not np.array_equal(other.batch(n)["input_ids"], forward[n]["input_ids"]) for n in range(5))


def test_token_budget_is_kept_and_counted_without_padding():
    pairs = random_pairs(50)
    longest = max(pair.tokens for pair in pairs)
    for budget in (200, 999, 3000):
        plan = PairBatches(pairs, batch_tokens=60, tokens=budget, seed=1, pad_id=0)
        real = [int((plan.batch(step)["input_ids"] != 0).sum()) for step in range(plan.steps)]
        assert sum(real) == plan.tokens == plan.tokens_until(plan.steps)
        assert budget - longest < plan.tokens <= budget
        assert max(real) <= 60
    assert PairBatches(pairs, batch_tokens=60, steps=7).steps == 7


def test_every_pair_comes_once_an_epoch_beside_pairs_of_its_length():
    pairs = [EncodedPair(np.full(length, 3 + number), 1) for number, length in enumerate(range(5, 45))]
    total = sum(pair.tokens for pair in pairs)
    plan = PairBatches(pairs, batch_tokens=120, tokens=2 * total, seed=1)
    seen = np.concatenate([plan.batch(step)["input_ids"][:, 0] for step in range(plan.steps)])
    assert plan.epochs == 2 and sorted(seen) == sorted(2 * [3 + number for number in range(40)])
    padded = sum(plan.batch(step)["input_ids"].size for step in range(plan.steps))
    assert padded < 1.25 * plan.tokens, "bucketing keeps padding low"


def test_a_budget_below_one_pair_is_refused():
    with pytest.raises(DataError, match="does not reach for one training pair: 4.*raise the budget"):
        PairBatches([EncodedPair(np.arange(9), 4)], batch_tokens=100, tokens=4)
    with pytest.raises(ValueError, match="tokens or steps"):
        PairBatches([EncodedPair(np.arange(9), 4)], batch_tokens=100)


def test_greedy_text_stops_at_the_end_marker(tokenizer):
    torch.manual_seed(0)
    model = CairnForCausalLM(CairnConfig(**{**SHAPE, "vocab_size": len(tokenizer)}, num_key_value_heads=2)).eval()
    ids = prompt_ids(tokenizer, "Ann took")
    text = greedy_text(model, tokenizer, ids, 5)
    made = model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0, len(ids) :]
    assert text == tokenizer.decode(made, skip_special_tokens=True)
    with torch.no_grad():  # a head that only ever says eos
        model.lm_head = torch.nn.Linear(32, len(tokenizer))
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[tokenizer.eos_token_id] = 9.0
    assert greedy_text(model, tokenizer, ids, 5) == ""


def test_target_rows_are_in_reading_order():
    pairs = random_pairs()
    _, targets = target_logits(built("llama"), tensors(pad_pairs(pairs, 0)))
    assert targets.tolist() == [token for pair in pairs for token in pair.ids[pair.prompt_length :].tolist()]
