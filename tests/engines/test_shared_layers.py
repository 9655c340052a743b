"""Adapters on layers that share weights: PEFT's merge is silently wrong there, ours is not."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from cairn.engines.adapters import load_merged, load_peft, lora_shares_weights
from cairn.engines.base import GenerationRequest, Sampling
from cairn.engines.torch_engine import TorchEngine
from cairn.errors import AdapterError
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.training.finetune_plan import LoraSettings
from cairn.training.lora import quick_training, trained_parameters, with_adapter
from tests.engines.tiny_models import tiny_tokenizer

SHAPE = dict(vocab_size=360, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=96, initializer_range=0.2)
SCHEMES = {
    "parameter": {"feed_forward": {"scheme": "all"}},
    "delta": {"feed_forward": {"scheme": "interior", "free": 1, "delta_rank": 2}},
    "module": {"feed_forward": {"scheme": "all", "by": "module"}},
    "output": {"attention_output": {"scheme": "all"}},
    "blocks": {"blocks": {"repeat": 2}},
    "recurrence": {"recurrence": {"first": 0, "last": 1, "times": 2, "delta_rank": 2}},
}
FILE = "adapter_model.safetensors"
IDS = torch.randint(3, 360, (3, 15), generator=torch.Generator().manual_seed(1))


def built(scheme, **changes):
    torch.manual_seed(0)
    model = CairnForCausalLM(CairnConfig(**{**SHAPE, "sharing": SCHEMES[scheme], **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "delta_up" in name:
                parameter.normal_(std=0.2)
    return model


def adapted(model, folder, targets="all-linear", seed=1):
    """Writes an adapter that changes the output; returns the logits of the model with it beside."""
    torch.manual_seed(seed)
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    peft.save_pretrained(folder, save_embedding_layers=False)
    return peft.eval()(IDS).logits.detach()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_merged_equals_beside(scheme, tmp_path):
    plain = built(scheme)(IDS).logits
    beside = adapted(built(scheme), tmp_path)
    assert (beside - plain).abs().max() > 0.1
    assert torch.equal(load_peft(built(scheme), {"x": tmp_path})(IDS).logits, beside)
    merged = load_merged(built(scheme), "x", tmp_path)
    assert isinstance(merged, CairnForCausalLM)
    assert (merged(IDS).logits - beside).abs().max() < 1e-3
    merged.save_pretrained(tmp_path / "merged")
    again, report = CairnForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values()) and torch.equal(again(IDS).logits, merged(IDS).logits)


@pytest.mark.parametrize("scheme", ["parameter", "delta", "output", "blocks"])
def test_the_trap_is_there(scheme, tmp_path):
    """PEFT's own merge adds every layer's part to the one weight. If this fails, PEFT has mended it."""
    beside = adapted(built(scheme), tmp_path)
    assert lora_shares_weights(built(scheme), tmp_path)
    merged = PeftModel.from_pretrained(built(scheme), tmp_path).merge_and_unload()
    assert (merged(IDS).logits - beside).abs().max() > 0.1


def test_one_module_has_one_adapter(tmp_path):
    lora = LoraSettings(rank=4, targets=["gate_proj", "up_proj", "down_proj"])
    one = 4 * 3 * (32 + 48)
    assert trained_parameters(built("module"), lora) == one
    assert trained_parameters(built("parameter"), lora) == 4 * one
    adapted(built("module"), tmp_path)
    assert not lora_shares_weights(built("module"), tmp_path)
    merged = load_merged(built("module"), "x", tmp_path)
    assert merged.config.sharing and merged.model.layers[0].mlp is merged.model.layers[3].mlp


def test_an_adapter_of_the_other_kind_is_refused(tmp_path):
    """The file of one module has one adapter, that of tied parameters one for each layer: neither fits the other."""
    for kind in ("parameter", "module"):
        adapted(built(kind), tmp_path / kind, targets=["up_proj"])
    assert [len(load_file(tmp_path / kind / FILE)) for kind in ("parameter", "module")] == [8, 2]
    with pytest.raises(AdapterError, match="6 tensors are for places that this base does not have"):
        load_peft(built("module"), {"x": tmp_path / "parameter"})
    with pytest.raises(AdapterError, match="6 tensors are missing from its file"):
        load_peft(built("parameter"), {"x": tmp_path / "module"})


@pytest.mark.parametrize("scheme", ["parameter", "module", "recurrence"])
def test_quick_training_gives_the_same_gradients(scheme):
    model = built(scheme).train()
    with with_adapter(model, LoraSettings(rank=4), seed=1):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)

        def gradients():
            model.zero_grad()
            model(IDS, labels=IDS, use_cache=False).loss.backward()
            return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

        plain = gradients()
        with quick_training(model, autocast=False):
            quick = gradients()
    assert plain.keys() == quick.keys() and all("lora" in name for name in plain)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, quick[name], atol=1e-5), name


@pytest.mark.parametrize("scheme", ["recurrence", "module"])
def test_the_engine_answers_alike_beside_and_merged(scheme, tmp_path):
    base = tmp_path / "base"
    built(scheme).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    for seed, name in enumerate("ab", start=1):
        adapted(built(scheme), tmp_path / name, targets=["up_proj", "down_proj"], seed=seed)
    folders = {name: tmp_path / name for name in "ab"}
    asked = [
        GenerationRequest(prompt, name, Sampling(max_new_tokens=6))
        for prompt in ("Mary went to", "Where is the milk?") for name in ("a", None, "b")
    ]  # fmt: skip
    answers = []
    for merge in (True, False, "auto"):
        engine = TorchEngine(str(base), folders, merge=merge, dtype="float32", device="cpu")
        answers.append([one.text for one in engine.generate(asked)])
        beside = merge is False or (merge == "auto" and scheme == "recurrence")  # auto merges what loses nothing
        assert len(engine._merged) == (0 if beside else 2)
    assert answers[0] == answers[1] == answers[2] and len(set(answers[0])) > 2


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_a_merge_into_a_tied_or_softcapped_head_is_refused(tmp_path):
    adapted(built("parameter"), tmp_path / "tied", targets=["lm_head"])
    with pytest.raises(AdapterError, match="it changes a weight that several layers share"):
        load_merged(built("parameter"), "x", tmp_path / "tied")
    capped = {"logit_softcap": 5.0, "tie_word_embeddings": False}
    adapted(built("parameter", **capped), tmp_path / "capped", targets=["lm_head"])
    with pytest.raises(AdapterError, match="it adds to logits that are softcapped before"):
        load_merged(built("parameter", **capped), "x", tmp_path / "capped")
