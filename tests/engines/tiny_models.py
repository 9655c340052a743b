"""Tiny models for tests: a Llama of 2 layers, 32 wide, a tokenizer trained on a few sentences, LoRA adapters."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from cairn.identity import ADAPTER_CARD, base_identity
from cairn.models.tokenization import train_bpe

TEXTS = [
    "Mary went to the kitchen. John took the milk. Where is the milk? The answer is yes or no.",
    "Sandra moved to the garden. Daniel dropped the apple there. none of them is in the office.",
] * 4


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    return train_bpe(TEXTS, 360, model_max_length=96)


def tiny_llama(seed: int = 0, *, hidden_size: int = 32, vocab_size: int = 360, context: int = 96) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def save_base(folder: Path, seed: int = 0, **shape: int) -> Path:
    tiny_llama(seed, **shape).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, seed: int, *, card: bool = True) -> Path:
    """Writes a LoRA adapter with random B matrices, so that it changes the output."""
    model = LlamaForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False))
    peft.save_pretrained(folder)
    if card:
        (folder / ADAPTER_CARD).write_text(json.dumps({"base": base_identity(base), "stage": folder.name}))
    return folder
