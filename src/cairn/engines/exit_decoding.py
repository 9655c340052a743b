"""Writing tokens with the first layers alone, where they are sure; keys and values stay exactly the full model's.

    token ─▶ layers 0..k-1 ─ sure? ─ yes ─▶ next token          the state after layer k-1 waits
                               └ no ──▶ all waiting states ─▶ layers k.. in one pass ─▶ next token

A layer that a token skipped has no key and value of it, and later tokens that come so deep look there. Two ways out are
known: push the exit's state through the key and value projections of the skipped layers (cheap, but not what the layers
would have written), or run the skipped layers later, for all waiting tokens at once. Here it is the second: nothing is
approximated, so every token is chosen from exactly the distribution that its exit gives for the text so far, whoever
left early before it. Hence scores under a threshold need one pass (`exit_scores`), a batch writes what single rows
write, and a threshold above 1 is the full model. It costs little: at batch 1 a pass over a few tokens takes hardly
longer than a pass over one.

The same waiting states make self-speculation: the tokens of the exit are a draft, the later pass checks them, and the
cache goes back to before the first wrong one. Greedy output is then the full model's.

Source: exits by confidence and state propagation arXiv 2207.07061, section 3; waiting tokens run together 2310.05424,
section 3.2, and 2312.04916, section 3.2; self-speculation with shared cache 2404.16710, section 4.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cairn.config import StrictModel
from cairn.engines.cache import roomy_cache
from cairn.engines.decoding import KEEP_SHARE, Row, settle, shared_prefix, write
from cairn.models.layers import rotary_tables
from cairn.models.modeling import LayerInputs

__all__ = ["ExitDecoding", "ExitUsage", "Ladder", "draft_steps", "exit_scores", "exit_steps"]

Run = Callable[[Callable[[PreTrainedModel], Any]], Any]


class ExitDecoding(StrictModel):
    """How the exits of a model are used.

    Args:
        mode: `confidence`: a sure exit's token is the output. `speculative`: it is a draft, which the remaining layers
            check; the greedy output is the full model's.
        threshold: from 0 to 1, from where an exit is sure; above 1 it never is.
        judge: what says how sure it is: `probability` of its likeliest token, or the model's `gate` (`early_exit.py` of
            models; it guesses how little the layers above would change, and for drafts how likely they would find the
            same token likeliest); None: the gate, if the model has one.
        layers: exits that are used; None: all that the model was trained for (`speculative`: the first of them).
        draft_tokens: most tokens of one draft.
    """

    mode: Literal["confidence", "speculative"] = "confidence"
    threshold: float = Field(default=0.9, gt=0)
    judge: Literal["probability", "gate"] | None = None
    layers: tuple[int, ...] | None = None
    draft_tokens: int = Field(default=6, ge=1)


@dataclass
class ExitUsage:
    """What exits have done: tokens by the layers that wrote or scored them; tokens drafted, and kept of these."""

    tokens: Counter[int] = field(default_factory=Counter)
    drafted: int = 0
    kept: int = 0


class Ladder:
    """The layers of a model in pieces between exits, and the states that wait below each piece.

    It begins with one row without padding; `spread` makes a batch of it.

    Args:
        config: of the model.
        cuts: 0, the exits, and the number of layers.
        columns: most tokens of a row, padding included.
        device, dtype: of the hidden states.
    """

    def __init__(
        self, config: PretrainedConfig, cuts: Sequence[int], columns: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.cuts = tuple(cuts)
        self._config, self._dtype = config, dtype
        self._columns = torch.arange(columns, device=device)
        self._place(self._columns[None])
        self._real: Tensor | None = None  # which columns of each row are no padding [rows, columns]; None: all
        self._cache = roomy_cache(config)
        pieces = len(self.cuts) - 1
        self._seen = [0] * pieces  # columns that each piece has run
        # What waits below each piece: states [rows, waiting, hidden], and where layers mix in the first layer's values
        # these as well, [rows, kv_heads, waiting, head_dim].
        self._waiting: list[Tensor | None] = [None] * pieces
        self._values: list[Tensor | None] = [None] * pieces

    def _place(self, positions: Tensor) -> None:
        """Sets the position of every column, [1 or rows, columns]."""
        self._positions = positions
        self._rotary = rotary_tables(positions, self._config.head_dim, self._config.rope_theta, self._dtype)

    def spread(self, rows: int, padding: Tensor) -> None:
        """Makes a batch out of the one row read so far; nothing may wait.

        Args:
            rows: of the batch.
            padding: columns of each row that follow what was read and are padding, [rows].
        """
        read = self._seen[0]
        if read:
            self._cache.batch_repeat_interleave(rows)
        if bool(padding.any()):
            end = read + padding[:, None]
            self._real = (self._columns < read) | (self._columns >= end)  # [rows, columns]
            moved = (self._columns - padding[:, None]).clamp(min=read)
            self._place(torch.where(self._columns < read, self._columns, moved))

    def feed(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """Runs the first piece over new ids [rows, new]; returns the states after it [rows, new, hidden]."""
        decoder = model.get_decoder()
        self._waiting[0] = decoder.embed_tokens(ids)
        return self.rise(model, 0)

    def rise(self, model: PreTrainedModel, piece: int) -> Tensor:
        """Runs a piece over all that waits below it; returns the states after it [rows, waiting, hidden]."""
        x, start = self._waiting[piece], self._seen[piece]
        stop = start + x.shape[1]
        cos, sin = self._rotary
        inputs = LayerInputs(
            (cos[:, :, start:stop], sin[:, :, start:stop]), self._mask(start, stop), self._cache,
            self._positions[:, start:stop], {}, self._values[piece],
        )  # fmt: skip
        x = model.get_decoder().run_layers(x, inputs, self.cuts[piece], self.cuts[piece + 1])
        self._seen[piece] = stop
        self._waiting[piece] = self._values[piece] = None
        if piece + 2 < len(self.cuts):
            self._waiting[piece + 1] = _joined(self._waiting[piece + 1], x, 1)
            if inputs.first_value is not None:
                self._values[piece + 1] = _joined(self._values[piece + 1], inputs.first_value, 2)
        return x

    def _mask(self, start: int, stop: int) -> Tensor | None:
        """Returns who sees whom, added to the scores: [1 or rows, 1, stop - start, stop]; None: everything before."""
        whole = start == 0 and self._config._attn_implementation == "sdpa"
        if self._real is None and (whole or stop - start == 1):
            return None
        seen = (self._columns[:stop] <= self._columns[start:stop, None])[None]  # [1, stop - start, stop]
        if self._real is not None:
            seen = seen & self._real[:, None, :stop]
        mask = torch.zeros(seen.shape, dtype=self._dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(self._dtype).min)[:, None]

    def drop(self, columns: int) -> None:
        """Takes the last columns out of every piece; nothing may wait."""
        if columns:
            self._seen = [seen - columns for seen in self._seen]
            self._cache.crop(-columns)

    def select(self, index: Tensor) -> None:
        """Keeps only these rows."""
        self._cache.batch_select_indices(index)
        for kept in (self._waiting, self._values):
            kept[:] = [None if tensor is None else tensor[index] for tensor in kept]
        if self._real is not None:
            self._real = self._real[index]
            self._positions = self._positions[index]
            self._rotary = tuple(table[index] for table in self._rotary)


def _joined(first: Tensor | None, second: Tensor, axis: int) -> Tensor:
    return second if first is None else torch.cat([first, second], axis)


class _Exit:
    """One exit of a model: the norm, the head, and what judges it; layer `depth` is the end, which is always sure.

    Args:
        model: the decoder and its head.
        layer: layers below the exit.
        settings: `threshold` and `judge` count.
        guess: which of the gate's guesses judges.
    """

    def __init__(self, model: PreTrainedModel, layer: int, settings: ExitDecoding, guess: int = 0) -> None:
        decoder = model.get_decoder()
        self._norm, self._head = decoder.norm_after(layer), model.get_output_embeddings()
        gates = {} if settings.judge == "probability" else getattr(decoder, "exit_gates", {})
        self._gate = gates[str(layer)] if str(layer) in gates else None
        self._threshold, self._guess = settings.threshold, guess

    def logits(self, x: Tensor) -> Tensor:
        """Returns what the head gives for states [..., hidden]: [..., vocab], float32."""
        return self._head(self._norm(x)).float()

    def judged(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns which states [..., hidden] are sure [...], and the logits, unless none is sure and a gate saw it."""
        state = self._norm(x)
        if self._gate is None:
            logits = self._head(state).float()
            return (logits.amax(-1) - logits.logsumexp(-1)).exp() >= self._threshold, logits
        sure = self._gate(state)[..., self._guess] >= self._threshold
        return sure, self._head(state).float() if bool(sure.any()) else None


@torch.inference_mode()
def exit_steps(
    run: Run,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    settings: ExitDecoding,
    cuts: Sequence[int],
    usage: ExitUsage,
    *,
    ends: frozenset[int],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[None]:
    """Writes all rows to their end, each token from its first sure exit; yields after each token.

    The rows go up together as far as the least sure of them, but each takes the token of its own exit, so that a batch
    writes what its rows write alone.

    Args:
        run: calls a function with the model, the right adapter in it.
        config, tokenizer, rows, ends, device: as in `decoding.decode_steps`.
        settings: `threshold` counts.
        cuts: 0, the exits, and the number of layers.
        usage: counts the tokens of each exit.
        dtype: of the hidden states.
    """
    shared = shared_prefix([row.prompt for row in rows])
    width = max(len(row.prompt) for row in rows)
    longest = width + max(row.sampling.max_new_tokens for row in rows)
    ladder = Ladder(config, cuts, longest, device, dtype)
    if shared:
        head = torch.tensor([rows[0].prompt[:shared]], device=device)
        run(lambda model: _climb(ladder, model, head, ExitDecoding(threshold=2.0), [False]))
    prompts = [row.prompt[shared:] for row in rows]
    padding = [width - shared - len(prompt) for prompt in prompts]
    ladder.spread(len(rows), torch.tensor(padding, device=device))
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * gap + prompt for gap, prompt in zip(padding, prompts, strict=True)], device=device)
    running = list(rows)
    while True:
        finished = [bool(row.finish) for row in running]
        logits, levels = run(lambda model: _climb(ladder, model, ids, settings, finished))  # noqa: B023
        usage.tokens.update(level for level, done in zip(levels, finished, strict=True) if not done)
        write(running, logits, tokenizer, ends)
        yield
        alive = [place for place, row in enumerate(running) if not row.finish]
        if not alive:
            return
        if len(alive) <= KEEP_SHARE * len(running):
            running = [running[place] for place in alive]
            ladder.select(torch.tensor(alive, device=device))
        ids = torch.tensor([[row.new[-1]] for row in running], device=device)  # [rows, 1]


def _climb(
    ladder: Ladder, model: PreTrainedModel, ids: Tensor, settings: ExitDecoding, finished: Sequence[bool]
) -> tuple[Tensor, list[int]]:
    """Feeds ids [rows, new]; returns each row's logits [rows, vocab] from its first sure exit, and which that is."""
    depth = ladder.cuts[-1]
    chosen: Tensor | None = None
    levels = [0 if not done else depth for done in finished]  # 0: no exit has been sure of the row yet
    x = ladder.feed(model, ids)
    for piece, layer in enumerate(ladder.cuts[1:-1]):
        if settings.threshold <= 1:
            sure, logits = _Exit(model, layer, settings).judged(x[:, -1])
            new = [certain and not level for certain, level in zip(sure.tolist(), levels, strict=True)]
            if logits is not None:
                chosen = logits if chosen is None else _where(new, logits, chosen)
            levels = [layer if certain else level for certain, level in zip(new, levels, strict=True)]
            if all(levels):
                return chosen, levels
        x = ladder.rise(model, piece + 1)
    logits = _Exit(model, depth, settings).logits(x[:, -1])
    open_ = [not level for level in levels]
    return logits if chosen is None else _where(open_, logits, chosen), [level or depth for level in levels]


def _where(rows: list[bool], new: Tensor, old: Tensor) -> Tensor:
    return new if all(rows) else torch.where(torch.tensor(rows, device=new.device)[:, None], new, old)


@torch.inference_mode()
def draft_steps(
    run: Run,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    row: Row,
    settings: ExitDecoding,
    cuts: Sequence[int],
    usage: ExitUsage,
    *,
    ends: frozenset[int],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[None]:
    """Writes one row to its end, greedily, by drafts of the first exit that the other layers check.

    Args:
        row: temperature 0 and no choices.
        cuts: 0, the exit, and the number of layers.
        (others): as in `exit_steps`.
    """
    ladder = Ladder(config, cuts, len(row.prompt) + row.sampling.max_new_tokens, device, dtype)
    ids = torch.tensor([row.prompt], device=device)
    while not row.finish:
        most = min(settings.draft_tokens, row.sampling.max_new_tokens - len(row.new) - 1)
        tokens, drafted = run(lambda model: _draft(ladder, model, ids, settings, most, ends))  # noqa: B023
        usage.drafted += drafted
        usage.kept += len(tokens) - 1
        for token in tokens:
            settle(row, token, tokenizer, ends)
            yield
            if row.finish:
                return
        ids = torch.tensor([tokens[-1:]], device=device)


def _draft(
    ladder: Ladder, model: PreTrainedModel, ids: Tensor, settings: ExitDecoding, most: int, ends: frozenset[int]
) -> tuple[list[int], int]:
    """Feeds ids [1, new], drafts on, checks; returns the full model's next tokens, at least one, and drafts made."""
    exit_, end = _Exit(model, ladder.cuts[1], settings, guess=1), _Exit(model, ladder.cuts[2], settings)
    drafts: list[int] = []
    while True:
        x = ladder.feed(model, ids)
        if len(drafts) >= most or (drafts and drafts[-1] in ends):
            break
        sure, logits = exit_.judged(x[0, -1])
        if not sure:
            break
        drafts.append(int(logits.argmax()))
        ids = torch.tensor([drafts[-1:]], device=ids.device)
    states = ladder.rise(model, 1)[0, -len(drafts) - 1 :]  # after the last token that was settled, and after each draft
    wanted = end.logits(states).argmax(-1).tolist()
    right = next((place for place, token in enumerate(drafts) if token != wanted[place]), len(drafts))
    ladder.drop(len(drafts) - right)
    return wanted[: right + 1], len(drafts)


def exit_scores(
    model: PreTrainedModel, settings: ExitDecoding, cuts: Sequence[int], *, input_ids: Tensor,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the distribution of every position's first sure exit, in one pass.

    Args:
        model: with exits.
        settings: `threshold` and `judge` count.
        cuts: 0, the exits, and the number of layers.
        input_ids: [rows, seq].
        attention_mask: [rows, seq] or None.

    Returns:
        Logits [rows, seq, vocab], float32, and the layers that made each, [rows, seq].
    """
    x, inputs = model.get_decoder().begin(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    chosen: Tensor | None = None
    levels = torch.zeros(input_ids.shape, dtype=torch.long, device=input_ids.device)
    for start, stop in zip(cuts, cuts[1:], strict=False):
        x = model.get_decoder().run_layers(x, inputs, start, stop)
        exit_, new = _Exit(model, stop, settings), levels == 0
        if stop == cuts[-1]:
            logits = exit_.logits(x)
        elif settings.threshold > 1:
            continue
        else:
            sure, logits = exit_.judged(x)
            new = new & sure
        if logits is not None:
            chosen = logits if chosen is None else torch.where(new[..., None], logits, chosen)
            levels = levels.masked_fill(new, stop)
    return chosen, levels
