"""The engine that runs in this process: transformers for the base, PEFT for the adapters.

    requests, any mix ── group by adapter ── sort by length ── batches of at most `batch_tokens` ── results in order
                              │
                              ├─ merged: a plain copy of the base with the adapter inside   (small bases: fast)
                              └─ PEFT:   one base, the right adapter switched on for each forward pass

The active adapter is checked before every single forward pass, and set anew after any exception: neither an error, nor
another thread, nor a stream that is half read can leave the wrong one behind.
"""

from __future__ import annotations

import copy
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cairn.bases import check_tokenizer, load_base, pick_device, pick_dtype
from cairn.engines.adapters import load_merged, load_peft, lora_shares_weights
from cairn.engines.base import Capabilities, Generation, GenerationRequest, Score, ScoreRequest
from cairn.engines.batches import Runs, batches
from cairn.engines.decoding import Row, decode_steps, end_ids, settled_text
from cairn.engines.fused import FusedDecoder, can_fuse
from cairn.engines.held import choice_encoder, hold
from cairn.errors import EngineError, InputError, did_you_mean
from cairn.identity import base_identity, check_adapter, model_identity
from cairn.models.accounting import kv_bytes_per_token
from cairn.models.tokenization import completion_ids, prompt_ids

__all__ = ["TorchEngine", "Usage"]

_MERGE_BASE_BYTES = 200e6
_MERGE_ALL_BYTES = 1e9
_LOGIT_ELEMENTS = 1 << 26  # of one scoring batch: 256 MiB in float32
_CACHE_BYTES = {"cpu": 256 << 20}  # of one batch that is being written; elsewhere:
_CACHE_BYTES_GPU = 4 << 30


@dataclass
class Usage:
    """What an engine has done so far: calls, tokens read, tokens written, seconds in them."""

    calls: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0


class TorchEngine:
    """A base model and its adapters in this process.

    Args:
        base: "embedded:base", a folder, a Hugging Face name, or a model object (then give `tokenizer`; it is put
            into evaluation mode, and PEFT layers are put into it if adapters are not merged).
        adapters: name -> PEFT folder.
        tokenizer: for a model object.
        device: "auto", "cpu", "cuda", "mps" (see `bases.pick_device`).
        dtype: "auto", "float32", "bfloat16", "float16" (see `bases.pick_dtype`).
        batch_tokens: padded tokens read in one forward pass; default 8,192 on the CPU and 65,536 elsewhere. A batch
            that is being written also keeps its keys and values under 256 MiB on the CPU and 4 GiB elsewhere.
        merge: True keeps one copy of the base per adapter with the adapter merged into it, in float32 and then
            rounded to `dtype`: no extra work per token. False runs the adapter beside the base. "auto" merges
            when the base is under 200 MB and all copies together are under 1 GB.

    Raises:
        CheckpointError, TokenizerError: see `bases.load_base`.
        AdapterError: an adapter is missing, damaged, or made for another base; or merge=True and the base shares
            one weight between layers, which a merge would add to several times.
    """

    name = "torch"

    def __init__(
        self,
        base: str | Path | PreTrainedModel,
        adapters: Mapping[str, str | Path] | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
        merge: bool | Literal["auto"] = "auto",
    ) -> None:
        adapters = dict(adapters or {})
        if isinstance(base, PreTrainedModel):
            if tokenizer is None:
                raise EngineError("a model object needs its tokenizer", next="pass tokenizer=...")
            check_tokenizer(tokenizer, base.get_input_embeddings().weight.shape[0], type(base).__name__)
            self.model, self.tokenizer = base.eval(), tokenizer
            identity = model_identity(base, tokenizer)
        else:
            place = pick_device(device)
            self.model, self.tokenizer = load_base(str(base), dtype=pick_dtype(dtype, place), device=place)
            identity = base_identity(base) if adapters else {}
        self.config = self.model.config
        self.device = self.model.device
        self.batch_tokens = batch_tokens or (8192 if self.device.type == "cpu" else 65536)
        room = _CACHE_BYTES.get(self.device.type, _CACHE_BYTES_GPU)
        self._cache_tokens = max(1, room // kv_bytes_per_token(self.config, self.model.dtype.itemsize))
        self.usage = Usage()
        self._lock = threading.RLock()
        self._merged: dict[str | None, PreTrainedModel] = {}
        self._fused: dict[str | None, FusedDecoder | None] = {}  # None: this model cannot be
        self._owns_base = not isinstance(base, PreTrainedModel)  # nobody else changes its weights
        self._peft: Any = None
        self._active: tuple[str | None] | None = None  # (adapter,) that PEFT runs; None is unknown
        self._load_adapters(adapters, identity, merge)
        self._names = list(adapters)
        self._ends = end_ids(self.model, self.tokenizer)
        self._encode = choice_encoder(self.tokenizer)
        wanted = inspect.signature(type(self.model).forward).parameters
        self._keeps_last = "logits_to_keep" in wanted
        self._takes_positions = "position_ids" in wanted
        self.context_tokens: int | None = getattr(self.config, "max_position_embeddings", None)

    def _load_adapters(
        self, adapters: Mapping[str, str | Path], identity: Mapping[str, Any], merge: bool | Literal["auto"]
    ) -> None:
        shapes = {name: tuple(weight.shape) for name, weight in self.model.state_dict(keep_vars=True).items()}
        for folder in adapters.values():
            check_adapter(folder, identity, shapes)
        if merge == "auto":
            size = sum(weight.nbytes for weight in self.model.parameters())
            merge = size < _MERGE_BASE_BYTES and size * len(adapters) < _MERGE_ALL_BYTES
            merge = merge and not any(lora_shares_weights(self.model, folder) for folder in adapters.values())
        if merge:
            for name, folder in adapters.items():
                self._merged[name] = load_merged(copy.deepcopy(self.model), name, folder)
        elif adapters:
            self._peft = load_peft(self.model, adapters)

    @property
    def capabilities(self) -> Capabilities:
        """What this engine may promise."""
        return Capabilities(
            logprobs=True, adapters=True, mixed_adapters=True, streaming=True, constraints=True,
            context_tokens=self.context_tokens, ensembles=True,
        )  # fmt: skip

    def adapters(self) -> list[str]:
        """Returns the names of the loaded adapters."""
        return list(self._names)

    def close(self) -> None:
        """Frees the weights; the engine is not used afterwards."""
        self._merged.clear()
        self._fused.clear()
        self._peft = None
        del self.model
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def count_tokens(self, prompt: str) -> int:
        """Returns how many tokens a prompt is, a beginning mark included."""
        return len(prompt_ids(self.tokenizer, prompt))

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Returns one generation per request, in their order; adapters, sampling and constraints may be mixed.

        Raises:
            InputError: a prompt is empty, or too long for the context together with its output.
            EngineError: an adapter is not loaded.
        """
        rows = [self._row(request) for request in requests]
        results: list[Generation | None] = [None] * len(rows)
        read = [len(row.prompt) for row in rows]
        kept = [len(row.prompt) + row.sampling.max_new_tokens for row in rows]
        runs_of = [_runs(request) for request in requests]
        for runs, batch in batches(runs_of, read, kept, most=self.batch_tokens, room=self._cache_tokens):
            started = time.perf_counter()
            for _ in self._steps(runs, [rows[place] for place in batch]):
                pass
            seconds = (time.perf_counter() - started) / len(batch)
            for place in batch:
                row = rows[place]
                results[place] = Generation(row.text, len(row.prompt), len(row.new), row.finish, seconds)
                self._count(len(row.prompt), len(row.new), seconds)
        return [result for result in results if result is not None]

    def stream(self, request: GenerationRequest) -> Iterator[str]:
        """Yields the output of one request piece by piece; joined, the pieces are `generate`'s text.

        Text that may yet become a stop text, or is half of a character, is held back.

        Raises:
            InputError, EngineError: as `generate`, before the first piece.
        """
        row = self._row(request)
        held = max((len(stop) for stop in request.sampling.stop), default=1) - 1
        started = time.perf_counter()
        sent = 0
        for _ in self._steps(_runs(request), [row]):
            text = row.text if row.finish else settled_text(self.tokenizer, row.new, self._ends)
            end = len(text) if row.finish else max(sent, len(text) - held)
            if end > sent:
                yield text[sent:end]
                sent = end
        self._count(len(row.prompt), len(row.new), time.perf_counter() - started)

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Returns the score of each continuation, in order; its end mark is not scored.

        Raises:
            InputError: a continuation is empty, or context and continuation are longer than the model's context.
            EngineError: an adapter is not loaded.
        """
        sequences, scored = [], []
        for request in requests:
            self._check_adapter_name(request.adapter)
            target = self._continuation(request.continuation)
            if not target:
                raise InputError("nothing to score: the continuation is empty", value=request.continuation)
            ids = (prompt_ids(self.tokenizer, request.context) or [self._first_id()]) + target
            self._check_length(len(ids) - 1, 0, request.context + request.continuation)
            sequences.append(ids)
            scored.append(len(target))
        return self._score([request.adapter for request in requests], sequences, scored)

    def loglikelihood_rolling(self, texts: Sequence[str], adapter: str | None = None) -> list[Score]:
        """Returns the score of each whole text, every token once, in windows of the model's context.

        The first token is scored after the beginning mark; the last window reaches back to fill its context.

        Raises:
            InputError: a text is empty. EngineError: the adapter is not loaded.
        """
        self._check_adapter_name(adapter)
        sequences, scored, owners = [], [], []
        for owner, text in enumerate(texts):
            ids = self._continuation(text)
            if not ids:
                raise InputError("nothing to score: the text is empty", value=text)
            ids = [self._first_id(), *ids]
            window = self.context_tokens or len(ids)
            for start in range(1, len(ids), window):
                end = min(start + window, len(ids))
                sequences.append(ids[max(0, end - window - 1) : end])
                scored.append(end - start)
                owners.append(owner)
        parts = self._score([adapter] * len(sequences), sequences, scored)
        totals = [Score(0.0, True, 0)] * len(texts)
        for owner, part in zip(owners, parts, strict=True):
            sum_ = totals[owner]
            totals[owner] = Score(sum_.logprob + part.logprob, sum_.greedy and part.greedy, sum_.tokens + part.tokens)
        return totals

    @torch.inference_mode()
    def _score(self, adapters: Sequence[str | None], sequences: list[list[int]], scored: list[int]) -> list[Score]:
        """Scores the last `scored` tokens of each sequence; sequences that differ in their last token are read once."""
        results: dict[int, Score] = {}
        same: dict[tuple[str | None, tuple[int, ...]], list[int]] = {}
        for place, (adapter, ids) in enumerate(zip(adapters, sequences, strict=True)):
            same.setdefault((adapter, tuple(ids[:-1])), []).append(place)
        inputs, reads = list(same), [len(ids) for _, ids in same]
        most = min(self.batch_tokens, max(1, _LOGIT_ELEMENTS // self.config.vocab_size))
        for (adapter,), batch in batches([(adapter,) for adapter, _ in inputs], reads, most=most):
            started, width = time.perf_counter(), max(reads[number] for number in batch)
            # Padding on the right needs no mask: no real token looks ahead.
            ids = torch.tensor([[*inputs[number][1], *[0] * (width - reads[number])] for number in batch])
            logits = self._forward(adapter, input_ids=ids.to(self.device), use_cache=False).logits
            for row, number in zip(logits, batch, strict=True):  # row [width, vocab]
                for place in same[inputs[number]]:
                    start = reads[number] - scored[place]
                    results[place] = _score_row(row[start : reads[number]], sequences[place][start + 1 :])
            self._count(sum(reads[number] for number in batch), 0, time.perf_counter() - started, calls=len(batch))
        return [results[place] for place in range(len(sequences))]

    def _row(self, request: GenerationRequest) -> Row:
        if request.ensemble and request.adapter is not None:
            raise EngineError("an ensemble runs its own adapters", value=request.adapter, allowed="adapter=None")
        for adapter in _runs(request):
            self._check_adapter_name(adapter)
        if not request.prompt.strip():
            raise InputError("the prompt is empty", value=request.prompt, next="give some text")
        ids = prompt_ids(self.tokenizer, request.prompt)
        self._check_length(len(ids), request.sampling.max_new_tokens, request.prompt)
        constraint, most = request.constraint, request.sampling.max_new_tokens
        return Row(ids, request.sampling, None if constraint is None else hold(self._encode, constraint, most))

    def _check_length(self, tokens: int, new_tokens: int, text: str) -> None:
        limit = self.context_tokens
        if limit is None or tokens + new_tokens <= limit:
            return
        room = f"{limit} tokens" + (f", {new_tokens} of them for the output" if new_tokens else "")
        raise InputError(
            f"the input is longer than the model's context: {tokens} tokens", value=text, allowed=room,
            next="shorten the input, let a map stage read it piece by piece, or take a base with a longer context",
        )  # fmt: skip

    def _check_adapter_name(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._names:
            raise EngineError(
                f"this adapter is not loaded{did_you_mean(adapter, self._names)}", value=adapter,
                allowed=", ".join(self._names) or "none, only the base",
            )  # fmt: skip

    def _continuation(self, text: str) -> list[int]:
        return completion_ids(self.tokenizer, text)[:-1]

    def _first_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    def _steps(self, runs: Runs, rows: list[Row]) -> Iterator[None]:
        def forward(adapter: str | None, *, position_ids: Tensor, logits_to_keep: int, **inputs: Any) -> Any:
            if self._takes_positions:
                inputs["position_ids"] = position_ids
            if self._keeps_last:
                inputs["logits_to_keep"] = logits_to_keep
            return self._write(adapter, use_cache=True, **inputs)

        members = [partial(forward, adapter) for adapter in runs]
        return decode_steps(members, self.config, self.tokenizer, rows, ends=self._ends, device=self.device)

    def _write(self, adapter: str | None, **inputs: Any) -> Any:
        """As `_forward`, for the last positions alone, through joined weights where the engine owns such a model."""
        with self._lock:
            owned = adapter in self._merged or (self._peft is None and self._owns_base)
            if owned and adapter not in self._fused:
                model = self._merged.get(adapter, self.model)
                self._fused[adapter] = FusedDecoder(model) if can_fuse(model) else None
            fused = self._fused.get(adapter)
            return fused(**inputs) if fused is not None else self._forward(adapter, **inputs)

    def _forward(self, adapter: str | None, **inputs: Any) -> Any:
        return self._with(adapter, lambda model: model(**inputs))

    def _with(self, adapter: str | None, work: Callable[[Any], Any]) -> Any:
        """Calls `work` with the model that has this adapter in it or on it, and no other thread in between."""
        with self._lock:
            if adapter in self._merged:
                return work(self._merged[adapter])
            if self._peft is None:
                return work(self.model)
            if self._active != (adapter,):
                self._active = None  # unknown until the switch is done
                self._switch(adapter)
                self._active = (adapter,)
            try:
                return work(self._peft)
            except BaseException:
                self._active = None  # whatever the exception left behind, the next call switches anew
                raise

    def _switch(self, adapter: str | None) -> None:
        if adapter is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(adapter)

    def _count(self, prompt_tokens: int, new_tokens: int, seconds: float, calls: int = 1) -> None:
        self.usage.calls += calls
        self.usage.prompt_tokens += prompt_tokens
        self.usage.new_tokens += new_tokens
        self.usage.seconds += seconds


def _runs(request: GenerationRequest) -> Runs:
    return request.ensemble or (request.adapter,)


def _score_row(logits: Tensor, targets: list[int]) -> Score:
    """Scores targets [n] under logits [n, vocab]."""
    wanted = torch.tensor(targets, device=logits.device)
    logprobs = logits.float().log_softmax(-1).gather(1, wanted[:, None])
    return Score(float(logprobs.double().sum()), bool((logits.argmax(-1) == wanted).all()), len(targets))
