"""What the field's tools make of the decoder: PEFT adapts it, lm-evaluation-harness scores it."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model

from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.tokenization import completion_ids, prompt_ids, train_bpe

WORDS = "the a cat dog sees finds small big red green near under old new house tree".split()


def tiny(vocab_size=97, **changes):
    torch.manual_seed(0)
    return CairnForCausalLM(CairnConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, qk_norm=True, **changes,
    )).eval()


def ids(seed=1):
    return torch.randint(3, 97, (3, 12), generator=torch.Generator().manual_seed(seed))


def test_lora_trains_saves_loads_and_merges(tmp_path):
    base = tiny()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    plain = base(ids()).logits.detach()
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert torch.equal(model(ids()).logits, plain)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(30):
        logits = model(ids()).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids()[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    model.eval()
    trained = model(ids()).logits.detach()
    model.save_pretrained(tmp_path)

    fresh = tiny()
    fresh.load_state_dict(before)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    assert torch.allclose(loaded(ids()).logits, trained, atol=1e-6)
    with loaded.disable_adapter():
        assert torch.equal(loaded(ids()).logits, plain)
    merged = loaded.merge_and_unload()
    assert isinstance(merged, CairnForCausalLM)
    assert (merged(ids()).logits - trained).abs().max() < 1e-4
    assert (merged(ids()).logits - plain).abs().max() > 1e-2
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_harness_scores_it(tmp_path):
    """lm-eval's HFLM, given the saved folder, returns the log-likelihoods that the logits say."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer = train_bpe([" ".join(WORDS)] * 50, 330)
    tiny(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = HFLM(pretrained=str(tmp_path), backend="causal", device="cpu", batch_size=2, dtype="float32")
    pairs = [("the cat sees", " a dog"), ("the old house", " near the tree"), ("a", " green")]
    scored = lm.loglikelihood([Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)])
    model = tiny(vocab_size=len(tokenizer))
    for (context, continuation), (logprob, greedy) in zip(pairs, scored, strict=True):
        head = prompt_ids(tokenizer, context)  # the harness puts bos as serving does
        tail = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        logits = model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1].log_softmax(-1)
        expected = logits[range(len(tail)), tail].sum().item()
        assert logprob == pytest.approx(expected, abs=1e-3)
        assert greedy == (logits.argmax(-1).tolist() == tail)
    assert prompt_ids(tokenizer, "the cat")[0] == tokenizer.bos_token_id
    assert completion_ids(tokenizer, " dog")[-1] == tokenizer.eos_token_id
