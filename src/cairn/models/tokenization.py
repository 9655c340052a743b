"""The tokenizers: a lossless BPE over raw characters, rare characters as bytes, or bytes alone; and text as ids.

    text --Split--> pieces (" word", "7", "\\n", " ,") --BPE--> tokens, a character outside the alphabet as <0xHH>
    tokens --ByteFallback, Fuse--> the same text

A tiny model pays for every row of its vocabulary, so the alphabet holds only frequent characters and everything
else falls back to 256 byte tokens: any valid Unicode string comes back unchanged. A space belongs to the word after
it, hence prompts end without a space and completions begin with one, and both are always encoded apart.

This file imports nothing of Cairn: it travels inside checkpoints. Errors are ValueError and TypeError.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = [
    "BOS", "EOS", "MIN_VOCABULARY", "PAD", "byte_ids", "byte_tokenizer", "completion_ids", "ids_to_bytes", "prompt_ids",
    "tokenizer_fingerprint", "train_bpe",
]  # fmt: skip

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
_SPECIALS = (PAD, BOS, EOS)
_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
MIN_VOCABULARY = 320  # 3 specials + 256 bytes + room for some characters
_ALPHABET = 160

# Words keep the space before them and an apostrophe inside; digits and marks stand alone, so that numbers and
# quotes are never glued to words; of several spaces the last one goes to the word; a newline is a token of its own.
_PIECES = r" ?\p{L}+(?:['’]\p{L}+)?| ?\p{N}| ?[^\s\p{L}\p{N}]| +(?!\S)| |\n|\s"

_PROBE = "The cat's 2 hats,  then\n\tnaïve “Ω” <0x41> ▁ 🙂 end."


def train_bpe(texts: Iterable[str], vocab_size: int, *, model_max_length: int = 1024) -> PreTrainedTokenizerFast:
    """Trains a byte-fallback BPE whose decoding gives back any valid Unicode string unchanged.

    Args:
        texts: training documents, held in memory while training: some tens of MB are plenty for 8k rows.
        vocab_size: rows of the vocabulary wanted, at least 320; fewer come out if the text is too small for them.
        model_max_length: context of the model in tokens, stored with the tokenizer (it only warns, never cuts).

    Returns:
        A tokenizer with ids <|pad|>=0, <|bos|>=1, <|eos|>=2, bytes 3..258, then characters and merges. It puts
        <|bos|> in front when add_special_tokens=True, never <|eos|>, and reads "<|eos|>" in text as plain text.

    Raises:
        ValueError: vocab_size is below 320, or the texts hold no character.
        TypeError: `texts` is one string instead of many.
    """
    if vocab_size < MIN_VOCABULARY:
        raise ValueError(f"vocab_size is too small: {vocab_size}. Allowed: {MIN_VOCABULARY} or more (256 are bytes)")
    if isinstance(texts, str):
        raise TypeError("texts is one string. Allowed: an iterable of strings, one a document")
    bare = Tokenizer(models.BPE(byte_fallback=True))
    bare.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    texts = list(texts)
    alphabet = _alphabet(texts, min(_ALPHABET, (vocab_size - len(_BYTES) - len(_SPECIALS)) * 2 // 3))
    if not alphabet:
        raise ValueError("the training texts are empty. Allowed: at least one document with text in it")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(_BYTES),
        special_tokens=list(_SPECIALS),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    bare.train_from_iterator(_bounded(texts), trainer)
    return _wrap(_with_bytes(bare), model_max_length)


def byte_tokenizer(*, model_max_length: int = 1024) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of byte-level models: every UTF-8 byte is a token, any valid Unicode string comes back.

    Args:
        model_max_length: context of the model in bytes, stored with the tokenizer (it only warns, never cuts).

    Returns:
        A tokenizer with ids <|pad|>=0, <|bos|>=1, <|eos|>=2 and bytes 3..258, the ids that `train_bpe` gives them. It
        puts <|bos|> in front when add_special_tokens=True. A text of bytes that are no UTF-8 has no string: encode it
        with `byte_ids` and decode with `ids_to_bytes`.
    """
    letters = _byte_letters()
    vocabulary = {token: index for index, token in enumerate((*_SPECIALS, *letters))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.add_special_tokens(list(_SPECIALS))
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # in short pieces: the model's work grows faster than their length
        [pre_tokenizers.Split(Regex(r"[\s\S]{1,64}"), behavior="isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )  # fmt: skip
    return _wrap(backend, model_max_length, decoders.ByteLevel())


def byte_ids(data: bytes) -> list[int]:
    """Returns the ids of any bytes, UTF-8 or not, as a `byte_tokenizer` numbers them."""
    return [value + len(_SPECIALS) for value in data]


def ids_to_bytes(ids: Iterable[int]) -> bytes:
    """Returns the bytes of a byte model's ids, as they are; marks are left out.

    Raises:
        ValueError: an id is no byte and no mark.
    """
    kept = [token - len(_SPECIALS) for token in ids if token >= len(_SPECIALS) or token < 0]
    wrong = next((value for value in kept if not 0 <= value < 256), None)
    if wrong is not None:
        last = len(_SPECIALS) + 255
        raise ValueError(f"id {wrong + len(_SPECIALS)} is not of a byte vocabulary. Allowed: 0 to {last}")
    return bytes(kept)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encodes what a model reads before it writes: a leading bos if this tokenizer puts one by itself, never an eos.

    Args:
        tokenizer: any fast tokenizer; those without bos (GPT-NeoX) give plain ids.
        text: prompt; names of special tokens inside it are plain text.
    """
    bos = tokenizer.bos_token_id
    puts_bos = bos is not None and list(tokenizer("").input_ids)[:1] == [bos]
    return ([bos] if puts_bos else []) + _plain_ids(tokenizer, text)


def completion_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encodes what a model must write: the ids of the text, then eos; no bos.

    Raises:
        ValueError: the tokenizer has no eos token, so that an end could not be learnt.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos token. Allowed: a tokenizer whose eos_token is set")
    return [*_plain_ids(tokenizer, text), tokenizer.eos_token_id]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a SHA-256 that is equal for tokenizers which give the same ids, and survives saving and loading.

    It covers vocabulary, merges, added tokens, bos and eos, and the ids of a probe text (which tells normalisers and
    pre-tokenizers apart). Padding settings are left out: setting a pad token does not change what text becomes.

    Raises:
        TypeError: the tokenizer is not a fast one, so its rules cannot be read.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TypeError(f"not a fast tokenizer: {type(tokenizer).__name__}. Allowed: one backed by `tokenizers`")
    state = json.loads(backend.to_str())
    merges = state["model"].get("merges") or []
    facts = {
        "vocab": sorted(backend.get_vocab(with_added_tokens=True).items()),
        "merges": [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in merges],
        "added": sorted((token["id"], token["content"], token["special"]) for token in state["added_tokens"]),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "probe": _plain_ids(tokenizer, _PROBE),
    }
    return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # split_special_tokens: text that spells a special token is data, it may not become one.
    try:
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids)
    except TypeError:
        half = next((character for character in str(text) if "\ud800" <= character <= "\udfff"), None)
        if half is None:
            raise
        raise ValueError(
            f"the text holds {half!r}, half of a character: bytes that are no UTF-8 were read as text. Allowed: valid "
            "Unicode, or for a byte model the bytes themselves (byte_ids)"
        ) from None


def _alphabet(texts: list[str], size: int) -> list[str]:
    """Returns the most frequent characters; the trainer's own limit breaks ties at random, so runs would differ."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return sorted(counts, key=lambda character: (-counts[character], character))[:size]


def _bounded(texts: Iterable[str], characters: int = 1 << 16) -> Iterator[str]:
    """Cuts long documents at spaces, because the trainer hands out work by document."""
    for text in texts:
        start = 0
        while len(text) - start > characters:
            cut = text.find(" ", start + characters)
            if cut < 0:
                break
            yield text[start:cut]
            start = cut
        yield text[start:]


def _with_bytes(bare: Tokenizer) -> Tokenizer:
    """Inserts the byte tokens behind the specials (the trainer knows no bytes) and closes the gaps in the ids."""
    state: dict[str, Any] = json.loads(bare.to_str())
    learnt = [token for token, _ in sorted(state["model"]["vocab"].items(), key=lambda item: item[1])]
    order = [*_SPECIALS, *_BYTES, *(token for token in learnt if token not in _SPECIALS)]
    state["model"]["vocab"] = {token: index for index, token in enumerate(order)}
    return Tokenizer.from_str(json.dumps(state))


def _byte_letters() -> list[str]:
    """Returns the character that stands for each byte in a byte-level vocabulary, in the order of the bytes.

    Printable bytes of Latin-1 stand for themselves, the others for the characters from U+0100 on.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(value if value in plain else next(others)) for value in range(256)]


def _wrap(backend: Tokenizer, model_max_length: int, decoder: Any = None) -> PreTrainedTokenizerFast:
    backend.decoder = decoder or decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, _SPECIALS.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
