"""Exits are part of a model that loads, saves and generates as before; wrong ones are refused in one error."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.accounting import parameters_by_part
from cairn.models.early_exit import early_exit_of

SHAPE = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.1)


def tiny(**changes):
    torch.manual_seed(0)
    return CairnForCausalLM(CairnConfig(**{**SHAPE, **changes})).eval()


IDS = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(1))


def test_exits_through_the_shared_norm_leave_weights_and_logits_as_they_were():
    plain, with_exits = tiny(), tiny(early_exit={})
    assert plain.state_dict().keys() == with_exits.state_dict().keys()
    assert torch.equal(plain(IDS).logits, with_exits(IDS).logits)


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_an_exit_is_the_model_cut_off_after_it(layers):
    model = tiny(early_exit={})
    short = tiny(num_hidden_layers=layers)
    weights = {name: weight for name, weight in model.state_dict().items() if name in short.state_dict()}
    short.load_state_dict(weights)
    assert torch.allclose(model(IDS, exit_layer=layers).logits, short(IDS).logits, atol=1e-6)


def test_every_exit_has_its_own_norm_saved_and_loaded(tmp_path):
    model = tiny(early_exit={"layers": [1, 3], "norm": "own", "gate": True})
    for norm in model.model.exit_norms.values():
        norm.weight.data.uniform_(0.5, 2.0)
    assert model.model.norm_after(3) is model.model.exit_norms["3"]
    assert model.model.norm_after(2) is model.model.norm_after(4) is model.model.norm
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for layers in (1, 3, 4):
        assert torch.equal(again(IDS, exit_layer=layers).logits, model(IDS, exit_layer=layers).logits)
    gates = [one.model.exit_gates["3"](torch.ones(32)) for one in (model, again)]
    assert torch.equal(*gates) and gates[0].shape == (2,)
    assert parameters_by_part(model.config)["total"] == model.num_parameters()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": [0, 2, 4]}, r"exits \[0, 4\] are out of range, allowed: whole numbers, 1 to 3"),
        ({"layers": [3, 1]}, r"layers is \[3, 1\], allowed: rising numbers"),
        ({"layers": []}, r"layers is \[\], allowed: rising numbers, at least one"),
        ({"layers": "all"}, "layers is 'all', allowed: a list"),
        ({"layers": [True]}, r"exits \[True\] are out of range"),
        ({"layer": [1], "norm": "none"}, r"'layer' \(did you mean layers\?\); norm is 'none', allowed: shared, own"),
        ({"gate": 1}, "gate is 1, allowed: true or false"),
    ],
)
def test_wrong_exits_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        tiny(early_exit=given)
    with pytest.raises(ValueError, match="early_exit: "):
        early_exit_of(given, 4)


def test_exits_of_one_layer_and_of_pooled_bytes_are_refused():
    with pytest.raises(ValueError, match="none: a model of one layer has no exit"):
        tiny(num_hidden_layers=1, early_exit={"layers": [1]})
    with pytest.raises(ValueError, match="early_exit and byte_pooling are both set"):
        tiny(early_exit={}, byte_pooling={}, vocab_size=259)
    with pytest.raises(ValueError, match="exit_layer is 5, allowed: 1 to 4"):
        tiny()(IDS, exit_layer=5)
