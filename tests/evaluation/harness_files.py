"""Small files for lm-evaluation-harness's tasks, and tiny models that score them."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from cairn.models.tokenization import train_bpe

WORDS = "kitchen garden milk apple office football hallway bathroom bread river".split()


def arc_row(number: int, choices: int = 4, *, name: str = "item") -> dict[str, Any]:
    texts = [f"{WORDS[(number + step) % 10]} {'and bread ' * step}near the river".strip() for step in range(choices)]
    labels = "ABCDE"[:choices] if number % 2 else "12345"[:choices]
    return {
        "id": f"{name}-{number}", "question": f"Where is the {WORDS[number % 10]} of John?",
        "choices": {"text": texts, "label": list(labels)}, "answerKey": labels[number % choices],
    }  # fmt: skip


def mmlu_row(number: int, subject: str = "anatomy") -> dict[str, Any]:
    choices = [WORDS[(number + step) % 10] for step in range(4)]
    return {"question": f"Question {number} about the milk?", "subject": subject, "choices": choices,
            "answer": number % 4}  # fmt: skip


def blimp_row(number: int, paradigm: str) -> dict[str, Any]:
    good = f"Mary went to the {WORDS[number]}."
    bad = good if number == 2 else f"Mary to went {WORDS[number]} the."
    return {"sentence_good": good, "sentence_bad": bad, "UID": paradigm, "field": "syntax"}


FILES: dict[str, list[dict[str, Any]]] = {
    "arc_easy_train": [arc_row(number, name="train") for number in range(30, 36)],
    "arc_easy_test": [arc_row(number, 3 + number % 3) for number in range(8)],
    "arc_challenge_test": [arc_row(number) for number in range(3)],
    "blimp": [blimp_row(number, one) for one in ("adjunct_island", "passive_1") for number in range(5)],
    "boolq": [
        {"query": "Passage: Milk is white.\nQuestion: is milk white?", "choices": ["no", "yes"], "gold": 1},
        {"query": "Passage: A river.\nQuestion: is\nQuestion: it dry?", "choices": ["no", "yes"], "gold": 0},
    ],
    "gsm8k_test": [{"question": "What is 1 + 1?", "answer": "It is 1 + 1 = <<1+1=2>>2.\n#### 2"}],
    "gsm8k_train": [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(6)],
    "hellaswag_validation": [
        {"ind": n, "activity_label": "Milk", "ctx": f"A man [step] takes the {WORDS[n]}. he", "label": str(n % 4),
         "endings": [f"drinks the {word}." for word in WORDS[:4]]}
        for n in range(4)
    ],
    "humaneval": [
        {"task_id": "HumanEval/0", "prompt": "def same(x):\n    \"\"\" Returns x. \"\"\"\n", "entry_point": "same",
         "canonical_solution": "    return x\n", "test": "def check(candidate):\n    assert candidate(3) == 3\n"},
        {"task_id": "HumanEval/1", "prompt": "def one():\n", "entry_point": "one",
         "canonical_solution": "    return 1\n", "test": "def check(candidate):\n    assert candidate() == 1\n"},
    ],
    "mmlu_dev": [mmlu_row(number) for number in range(5)],
    "mmlu_test": [*(mmlu_row(number) for number in range(5, 9)), mmlu_row(3, "virology")],
    "nq_open_validation": [{"question": "where is the milk", "answer": ["kitchen", "the kitchen"]}],
    "openbook_qa": [{"query": "Milk is", "choices": ["white", "green", "loud", "a river"], "gold": 0}],
    "tinybenchmarks_anchor_items": [
        {"scenario": "arc", "index": 1000 - n, "weight": 0.01, "id": str(n), "question": f"Where is {WORDS[n % 10]}?",
         "choices": [WORDS[(n + step) % 10] for step in range(4)], "answer": n % 4}
        for n in range(100)
    ] + [{"scenario": "mmlu", "index": n, "weight": 0.5, **mmlu_row(n)} for n in range(2)],
    "triviaqa_validation": [{"question": "Where is the milk", "answer": {"aliases": ["Kitchen", "garden"]}}],
    "winogrande": [
        {"context_options": ["John gave Mary milk because John", "John gave Mary milk because Mary"],
         "continuation": "was thirsty.", "gold": 1},
        {"context_options": ["She chose the black car, because the black car",
                             "She chose the black car, because the green car"], "continuation": "was new.", "gold": 0},
    ],
}  # fmt: skip


def write_files(folder: Path, *names: str) -> Path:
    """Writes the files of these names, every other one packed; all of them by default."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names or FILES):
        text = "".join(json.dumps(row) + "\n" for row in FILES[name]).encode()
        if number % 2:
            (folder / f"{name}.jsonl.xz").write_bytes(lzma.compress(text))
        else:
            (folder / f"{name}.jsonl").write_bytes(text)
    return folder


def word_tokenizer(context: int = 128) -> PreTrainedTokenizerBase:
    texts = [" ".join(WORDS), "Question: Where is the milk of John?\nAnswer: near the river and bread", "Mary went to."]
    return train_bpe(texts * 4, 380, model_max_length=context)


def tiny_neox(context: int = 128) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A GPT-NeoX, whose tokenizer puts no beginning mark."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    bare.train_from_iterator([" ".join(WORDS), "Where is the milk of John?\nAnswer: near the river"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<|endoftext|>", bos_token="<|endoftext|>", model_max_length=context
    )
    torch.manual_seed(1)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=context, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval(), tokenizer
