"""What a byte model costs to run: the core once per patch, the local layers for every byte."""

import pytest
import torch

from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.accounting import flops_per_token, forward_flops, kv_bytes_per_token

SHAPE = dict(vocab_size=259, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256)
POOLED = {"rule": "fixed", "stride": 4, "local_size": 32, "local_heads": 2, "window": 16}


@pytest.mark.parametrize("pooling, spread", [({"rule": "none"}, 0.0), (POOLED, 0.08)])
def test_flops_agree_with_torchs_counter(pooling, spread):
    """Window attention is computed in blocks, twice as wide as what a byte may see: that part is not counted."""
    from torch.utils.flop_counter import FlopCounterMode

    model = CairnForCausalLM(CairnConfig(**SHAPE, byte_pooling=pooling)).eval()
    model.set_attn_implementation("eager")
    length = 128
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(3, 259, (1, length)), use_cache=False)
    ours = length * flops_per_token(model.config, length)
    assert counter.get_total_flops() == pytest.approx(ours, rel=spread)


def test_a_pooled_core_runs_once_per_patch():
    pooled, flat = (CairnConfig(**SHAPE, byte_pooling=pooling) for pooling in (POOLED, {"rule": "none"}))
    assert kv_bytes_per_token(pooled) * 4 == kv_bytes_per_token(flat)
    assert forward_flops(pooled, 100, 20) < forward_flops(flat, 100, 20)
    longer = forward_flops(pooled, 200, 20) - forward_flops(pooled, 100, 20)
    assert longer > 100 * flops_per_token(pooled, 0, head=False)
