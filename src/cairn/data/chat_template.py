"""The chat template, and conversations as token ids: the same ids in training and in serving.

    <bos>Be brief.             system, if there is one
    User: Name a fruit.        read
    Assistant: Pear.<eos>      " Pear.<eos>" is what the loss looks at
    User: Another one.         read
    Assistant: Plum.<eos>      " Plum.<eos>" again

Training takes its ids from the tokenizer's own template, just as a server does: the ids before every answer are those
that `apply_chat_template(..., add_generation_prompt=True)` gives for the turns before it, and this is checked for
every conversation. Only plain words mark the roles, so that a base keeps its vocabulary and its adapters stay small.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from cairn.data.chat import Turn
from cairn.data.instructions import RowFault
from cairn.errors import TokenizerError

__all__ = ["ChatIds", "chat_sequences", "plain_template", "prepare_chat_tokenizer", "prompt_of", "special_in"]

_TEMPLATE = """\
{%- for turn in messages -%}
{%- if loop.first -%}{{ BOS }}{%- else -%}{{ '\\n' }}{%- endif -%}
{%- if turn['role'] == 'system' -%}{{ turn['content'] | trim }}
{%- elif turn['role'] == 'user' -%}{{ 'User: ' + (turn['content'] | trim) }}
{%- elif turn['role'] == 'assistant' -%}{{ 'Assistant: ' + (turn['content'] | trim) + eos_token }}
{%- else -%}{{ raise_exception('unknown role ' + turn['role'] + ', allowed: system, user, assistant') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\nAssistant:' }}{%- endif -%}
"""
_PROBE: tuple[Turn, ...] = (("user", "One?"), ("assistant", "Two."), ("user", "Three?"), ("assistant", "Four."))


@dataclass(frozen=True)
class ChatIds:
    """A conversation, or its beginning, as ids.

    Args:
        ids: of the whole text.
        answers: [start, end) of every stretch that an assistant wrote, its end mark included, in order.
    """

    ids: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the Jinja template drawn above; it begins with bos if this tokenizer puts one by itself."""
    bos = tokenizer.bos_token_id
    puts_bos = bos is not None and list(tokenizer("").input_ids)[:1] == [bos]
    return _TEMPLATE.replace("{{ BOS }}", "{{ bos_token }}" if puts_bos else "{{ '' }}")


def prepare_chat_tokenizer(
    tokenizer: PreTrainedTokenizerBase, template: str = "auto", ends: Collection[int] = ()
) -> PreTrainedTokenizerBase:
    """Writes a chat template into a tokenizer, in place, and checks that a model can be trained on it.

    Args:
        tokenizer: of a base.
        template: "auto" keeps the tokenizer's own if it has one, "plain" writes ours in any case, "own" demands one.
        ends: ids that end an output when this model serves; by default the tokenizer's eos.

    Raises:
        TokenizerError: there is no eos, no template of its own, or a template whose answers have no end mark or whose
            prompts are no beginnings of what is trained.
    """
    if tokenizer.eos_token_id is None:
        raise TokenizerError("the tokenizer has no eos token: no answer would end", next="take a base that has one")
    if template == "own" and not tokenizer.chat_template:
        raise TokenizerError("the tokenizer has no chat template of its own", next="set template: auto")
    if template == "plain" or not tokenizer.chat_template:
        tokenizer.chat_template = plain_template(tokenizer)
    tokenizer.split_special_tokens = False  # those of the template are meant; those in a text are refused elsewhere
    ends = set(ends) | {tokenizer.eos_token_id}
    advice = "set template: plain"
    try:
        found = chat_sequences(tokenizer, _PROBE)
    except RowFault as fault:
        raise TokenizerError(f"the tokenizer's chat template cannot be trained on ({fault})", next=advice) from None
    if not all(ends & set(one.ids[end - 2 : end]) for one in found for _, end in one.answers):
        raise TokenizerError(
            "the tokenizer's chat template ends no answer with an end mark of the model",
            value=tokenizer.convert_ids_to_tokens(list(found[-1].ids[-2:])), allowed=f"one of ids {sorted(ends)}",
            next=advice,
        )  # fmt: skip
    return tokenizer


def prompt_of(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[int]:
    """Returns the ids that a model reads before it answers: turns, and the beginning of the assistant's."""
    return _ids(tokenizer, turns, add_generation_prompt=True)


def special_in(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """Returns the special token that a text spells, which inside a template would act as one; None if there is none."""
    return next((special for special in tokenizer.all_special_tokens if special and special in text), None)


def chat_sequences(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], context_tokens: int | None = None
) -> list[ChatIds]:
    """Returns a conversation as ids: one sequence with all its answers, where the template lets it be one.

    Templates that show earlier answers in another way than they were written (some leave their thoughts out) give one
    sequence per answer. Last exchanges that do not fit the context are left out.

    Args:
        tokenizer: with a chat template.
        turns: as `chat.checked_turns` gives them.
        context_tokens: the longest sequence; None: no limit.

    Raises:
        RowFault: a special token is spelt, a prompt is no beginning of what is trained, or not even the first exchange
            fits.
    """
    for _, text in turns:
        spelt = special_in(tokenizer, text)
        if spelt is not None:
            raise RowFault("special token", f"a turn spells {spelt!r}, a special token of the model")
    sequences: list[ChatIds] = []
    for place, (role, _) in enumerate(turns):
        if role != "assistant":
            continue
        prompt = prompt_of(tokenizer, turns[:place])
        whole = _ids(tokenizer, turns[: place + 1])
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise RowFault("prompt differs", "the prompt of a server is no beginning of what would be trained")
        if context_tokens is not None and len(whole) > context_tokens:
            break
        answer = (len(prompt), len(whole))
        if sequences and list(sequences[-1].ids) == prompt[: len(sequences[-1].ids)]:
            sequences[-1] = ChatIds(tuple(whole), (*sequences[-1].answers, answer))
        else:
            sequences.append(ChatIds(tuple(whole), (answer,)))
    if not sequences:
        raise RowFault("beyond the context", f"the first exchange is longer than {context_tokens} tokens")
    return sequences


def _ids(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], **how: Any) -> list[int]:
    messages = [{"role": role, "content": text} for role, text in turns]
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **how))
