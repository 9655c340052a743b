"""Writing on this machine: tokens per second of Cairn's engine beside transformers' `generate` with the same weights.

    python -m benchmarks.writing [--quick]

Greedy, prompts of 64 tokens of generated text, up to 48 new tokens, one prompt at a time and 16 together, in the number
format that the engine takes by itself. The sides take turns; medians over the turns. Tokens count as far as each row's
end, prompts are read inside the time, and both must write the same texts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.rows import finish, row
from cairn.bases import load_base
from cairn.data.lookup import documents
from cairn.engines.base import GenerationRequest, Sampling
from cairn.engines.torch_engine import TorchEngine
from cairn.models.tokenization import prompt_ids

READ, NEW = 64, 48

Texts = list[tuple[str, int]]  # what was written, and its tokens


def prompts(tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    """Returns texts that are READ tokens long when they are encoded."""
    found: list[str] = []
    for document in map(str, documents(3)):
        text = tokenizer.decode(prompt_ids(tokenizer, document)[:READ], skip_special_tokens=True)
        if len(prompt_ids(tokenizer, text)) == READ:
            found.append(text)
        if len(found) == count:
            break
    return found


def ours(engine: TorchEngine, texts: Sequence[str]) -> Texts:
    made = engine.generate([GenerationRequest(text, None, Sampling(max_new_tokens=NEW)) for text in texts])
    return [(one.text, one.new_tokens) for one in made]


@torch.inference_mode()
def plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Texts:
    ids = torch.tensor([prompt_ids(tokenizer, text) for text in texts])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    found: Texts = []
    for tokens in made[:, READ:].tolist():
        end = tokens.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in tokens else len(tokens)
        found.append((tokenizer.decode(tokens[:end], skip_special_tokens=True), end))
    return found


def timed(write: Callable[[Sequence[str]], Texts], batches: Sequence[Sequence[str]]) -> tuple[float, Texts]:
    """Returns tokens per second over all batches, and what was written."""
    began = time.perf_counter()
    found = [one for batch in batches for one in write(batch)]
    return sum(tokens for _, tokens in found) / (time.perf_counter() - began), found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns and prompts; about a minute")
    quick = parser.parse_args().quick
    turns, asked = (5, 16) if quick else (9, 48)
    engine = TorchEngine("embedded:base", device="cpu")
    dtype = str(engine.model.dtype).removeprefix("torch.")
    model, tokenizer = load_base("embedded:base", dtype=dtype, device="cpu")
    texts = prompts(tokenizer, asked)
    sides: dict[str, Callable[[Sequence[str]], Texts]] = {
        "ours": lambda batch: ours(engine, batch), "plain": lambda batch: plain(model, tokenizer, batch)
    }  # fmt: skip
    rows = []
    for size in (1, 16):
        some = texts if size > 1 else texts[: asked // 4]
        batches = [some[start : start + size] for start in range(0, len(some), size)]
        rates: dict[str, list[float]] = {name: [] for name in sides}
        written: dict[str, Texts] = {}
        for turn in range(turns + 1):
            for name, write in sides.items():
                rate, written[name] = timed(write, batches)
                rates[name] += [rate] if turn else []  # the first turn warms up
        same = sum(one == other for one, other in zip(written["ours"], written["plain"], strict=True))
        middle = {name: statistics.median(found) for name, found in rates.items()}
        print(f"batch {size}: {middle['ours']:.0f} tokens/s beside {middle['plain']:.0f}; {same} of "
              f"{len(written['ours'])} texts the same ({dtype})")
        rows.append(row(
            f"greedy, batch {size}", "tokens/s", middle["ours"], middle["plain"], "transformers generate, same weights",
            1.3, same_texts=same / len(written["ours"]), dtype=dtype, turns=turns, threads=torch.get_num_threads(),
            spread=[min(rates["ours"]), max(rates["ours"])],
        ))  # fmt: skip
    return finish("writing", rows)


if __name__ == "__main__":
    sys.exit(main())
