"""ROUGE-L: how much of a reference answer stands in an answer, in the same order.

    answer     "he was very happy indeed"   ── words ──  he was very happy indeed      5 words
    reference  "He was happy."              ── words ──  he was happy                  3 words
                                                longest common subsequence: he was happy = 3
    precision 3/5, recall 3/3, F1 = 0.75

Words are runs of the letters a to z and digits of the text in lower case; anything else stands between words. There is
no stemming and no stop list. Against several references the best counts. These are the choices of Google's
rouge_score without its stemmer; an answer or reference without a word scores 0.

Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), section 3, with beta = 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["longest_common", "rouge_l", "rouge_words"]

_WORD = re.compile(r"[a-z0-9]+")


def rouge_words(text: str) -> list[str]:
    """Returns the words that ROUGE compares."""
    return _WORD.findall(text.lower())


def longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence."""
    before = [0] * (len(right) + 1)
    for word in left:
        row = [0]
        for place, other in enumerate(right):
            row.append(before[place] + 1 if word == other else max(row[-1], before[place + 1]))
        before = row
    return before[-1]


def rouge_l(answer: str, references: Iterable[str]) -> float:
    """Returns the F1 of ROUGE-L, 0 to 1, against the reference that fits best.

    Args:
        answer: what was answered.
        references: right answers, at least one.
    """
    return max((_f1(rouge_words(answer), rouge_words(reference)) for reference in references), default=0.0)


def _f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    common = longest_common(answer, reference)
    return 2 * common / (len(answer) + len(reference)) if common else 0.0
