"""The torch engine with a chat in front: a prompt becomes the user's message in the model's own chat template.

    prompt ── apply_chat_template([system], what was said before, user) ── ids ── TorchEngine

A teacher that was trained on chats answers a bare prompt poorly. Base models have no template: for them the torch
engine is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cairn.bases import load_tokenizer
from cairn.engines.base import GenerationRequest
from cairn.engines.decoding import Row
from cairn.engines.torch_engine import TorchEngine
from cairn.errors import EngineError, InputError

__all__ = ["ChatEngine", "ChatRequest", "has_chat_template"]


@dataclass(frozen=True)
class ChatRequest(GenerationRequest):
    """What the user says now, and what was said before.

    Args:
        history: (role, text) of earlier turns, user and assistant in turn.
        (others): see the base class.
    """

    history: tuple[tuple[str, str], ...] = ()


def has_chat_template(base: str) -> bool:
    """Tells whether a model's tokenizer has a chat template.

    Raises:
        CheckpointError: no such model. TokenizerError: its tokenizer cannot be read.
    """
    return bool(load_tokenizer(base).chat_template)


class ChatEngine(TorchEngine):
    """A chat model in this process.

    Args:
        base: "embedded:base", a folder, or a Hugging Face name.
        system: the system message.
        settings: of `TorchEngine`.

    Raises:
        EngineError: the tokenizer has no chat template. CheckpointError, TokenizerError: see `TorchEngine`.
    """

    name = "chat"

    def __init__(self, base: str, *, system: str | None = None, **settings: Any) -> None:
        super().__init__(base, **settings)
        if not self.tokenizer.chat_template:
            raise EngineError(
                "the tokenizer has no chat template", value=base, next="set chat: false, or take the instruct model"
            )
        self.system = system
        self._special = [text for text in self.tokenizer.all_special_tokens if text]

    def _row(self, request: GenerationRequest) -> Row:
        row = super()._row(request)
        history = request.history if isinstance(request, ChatRequest) else ()
        said = [*(text for _, text in history), request.prompt]
        spelt = next((special for special in self._special if any(special in text for text in said)), None)
        if spelt is not None:  # inside a template it would end the message
            raise InputError("the prompt spells a special token of the model", value=spelt)
        system = [{"role": "system", "content": self.system}] if self.system else []
        earlier = [{"role": role, "content": text} for role, text in history]
        turns = [*system, *earlier, {"role": "user", "content": request.prompt}]
        ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
        self._check_length(len(ids), request.sampling.max_new_tokens, request.prompt)
        return Row(list(ids), row.sampling, row.held)
