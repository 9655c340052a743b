"""What tells a teacher's text that can be used from one that cannot, whatever the stage promises.

    text ── garbage? (characters of no writing, one piece over and over, an apology instead of work)
         ── another language? (letters of another script; words that only another language has)
         ── the right answer?

The checks compare with what the row itself holds: a row that asks for a translation has another language in it, and a
row that asks for a line of dashes has dashes in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

__all__ = ["LANGUAGES", "foreign", "garbage", "same_answer"]

# Short words that are frequent in one language and rare in the others of this list.
LANGUAGES: dict[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in {
        "en": "the and of is are was were with that this for which from they have has been not you it be",
        "de": "der die das und ist sind nicht ein eine einen mit von für auf dem den wird auch sich werden",
        "es": "el los las una y es que por con para del como está son pero más sus también muy esta",
        "fr": "le les des et est une que dans pour qui pas sur avec ce sont du au cette plus nous",
        "it": "il gli di che è una per con non sono della nel anche più alla dei questo come del essere",
        "nl": "de het een en van is dat op te zijn met voor niet aan er ook door naar bij worden",
        "pt": "o os uma e é que para com não por dos das em ao mais como foi são seu também",
    }.items()
}

_WORD = re.compile(r"[^\W\d_]+")
_APOLOGY = re.compile(
    r"^\W*(?:(?:i(?:'|’)m |i am )?sorry,? (?:but|i|as|the given|you (?:have|did|need))\b|i apologi[sz]e, but\b|"
    r"as an? (?:ai|(?:ai )?language model|artificial intelligence)\b|"
    r"i (?:cannot|can(?:'|’)t|am unable to|am not able to) (?:assist|help|fulfill?|comply|provide|answer|do that))",
    re.IGNORECASE,
)
_FEW_WORDS = 12  # below, words do not tell a language
_LEAST_HITS = 0.12  # share of a language's words in a text that is taken for that language
_LEAST_DISTINCT = 3  # of them: a list of names may hold one such word many times
_LEAST_REPEATS = 6
_OTHER_LETTERS = 0.3  # share of letters of another script
_ODD = 0.15  # share of characters that are no text
_WORD_LENGTH = 60  # longer "words" are not words; a web address has marks in it and is cut there


def garbage(text: str, reference: str = "") -> str | None:
    """Returns why a text is no text that a person would have written; None if nothing tells.

    Args:
        text: not empty.
        reference: the texts that it was made from.
    """
    if any(unicodedata.category(character) == "Cs" for character in text):
        return "half of a character"
    odd = sum(_is_odd(character) for character in text)
    if odd > _ODD * len(text) and odd > sum(_is_odd(character) for character in reference):
        return f"{odd} of {len(text)} characters are no text"
    apology = _APOLOGY.match(text)
    if apology and not _APOLOGY.match(reference) and apology.group(0).strip().lower() not in reference.lower():
        return "an apology instead of work"
    piece = _repeated(text)
    if piece and _repeated(reference) is None:
        return f"{piece!r} over and over"
    long = next((word for word in _WORD.findall(text) if len(word) > _WORD_LENGTH and word not in reference), None)
    if long and not any(unicodedata.name(letter, "").startswith(_NO_SPACES) for letter in long):
        return f"a word of {len(long)} letters"
    return None


_WRITTEN_TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "HANGUL": "CJK"}  # one text may have them all
_NO_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")  # scripts written without spaces


def _is_odd(character: str) -> bool:
    if character in "\n\t\r":
        return False
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn", "Cs")


def _repeated(text: str) -> str | None:
    """Returns a piece of 1 to 8 words, or a character, that fills the end of a text; None if there is none."""
    tail = re.search(r"([^\s=\-_*#.~+|])\1{19,}\W*$", text)
    if tail:
        return tail.group(1)
    words = text.split()
    for size in range(1, 9):
        if len(words) < size * _LEAST_REPEATS:
            return None
        piece, count = words[-size:], 1
        while words[-size * (count + 1) : -size * count] == piece:
            count += 1
        if count >= _LEAST_REPEATS:
            return " ".join(piece)
    return None


def foreign(text: str, language: str, reference: str = "") -> str | None:
    """Returns the script or language that a text is in, if that is not `language` and not one of the reference's.

    Args:
        text: not empty.
        language: one of `LANGUAGES`, all of them written in Latin letters.
        reference: the texts that it was made from.
    """
    scripts = _scripts(text)
    letters = sum(scripts.values())
    known = _scripts(reference)
    for script, count in scripts.items():
        if script not in ("LATIN", "GREEK") and count > _OTHER_LETTERS * letters and not known.get(script):
            return f"letters of another script ({script.lower()})"
    shares = _shares(text)
    if not shares:
        return None
    best = max(shares, key=lambda name: (shares[name], name == language))
    if best == language or shares[best] < _LEAST_HITS or shares[best] < 1.5 * shares[language]:
        return None
    if len({word.lower() for word in _WORD.findall(text)} & LANGUAGES[best]) < _LEAST_DISTINCT:
        return None
    there = _shares(reference)
    return None if there and there.get(best, 0.0) >= _LEAST_HITS / 2 else f"another language ({best})"


def _scripts(text: str) -> Counter[str]:
    """Counts letters by script; Greek letters stand in formulas, so the caller lets them pass."""
    found: Counter[str] = Counter()
    for letter, count in Counter(character for character in text if character.isalpha()).items():
        script = unicodedata.name(letter, "UNKNOWN").split()[0]
        found[_WRITTEN_TOGETHER.get(script, script)] += count
    return found


def _shares(text: str) -> dict[str, float]:
    words = [word.lower() for word in _WORD.findall(text)]
    if len(words) < _FEW_WORDS:
        return {}
    return {name: sum(word in known for word in words) / len(words) for name, known in LANGUAGES.items()}


def same_answer(one: str, other: str) -> bool:
    """Tells whether two answers say the same, capitals, marks, white space and articles apart."""
    return _bare(one) == _bare(other)


def _bare(text: str) -> str:
    words = re.findall(r"[^\W_]+(?:[.,]\d+)*", text.casefold())
    return " ".join(word for word in words if word not in ("a", "an", "the")) or " ".join(text.split())
