"""What tells a usable text from garbage, from another language, and a right answer from a wrong one."""

from __future__ import annotations

import pytest

from cairn.data.distill_checks import foreign, garbage, same_answer

ENGLISH = "The ferry leaves the harbour at nine and it is at the island before the sun has gone down."
GERMAN = "Die Fähre fährt um neun Uhr aus dem Hafen und ist vor dem Abend auf der Insel, sie wird nicht warten."
FRENCH = "Le bateau part du port à neuf heures et les gens sont dans la ville avec nous pour une fête."
GREEK = "Το πλοίο φεύγει από το λιμάνι στις εννέα"


REAL = [
    "yes", "42", ENGLISH, "A list:\n- one\n- two\n\tindented", "C++ := a->b; // ok", "No no no no!", "=" * 60,
    "I'm sorry to hear that your order was late.", "naïve 🙂 Ω", GREEK,
]  # fmt: skip


@pytest.mark.parametrize("text", REAL)
def test_real_text_passes(text: str) -> None:
    assert garbage(text) is None and foreign(text, "en") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("\ufffd\ufffd\ufffd ok", "3 of 6 characters are no text"),
        ("the the the the the the the", "over and over"),
        ("It is good. " * 8, "over and over"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "over and over"),
        ("Sorry, but I cannot do this.", "an apology"),
        ("As an AI language model, I have no opinion.", "an apology"),
        ("I cannot help with that request.", "an apology"),
        ("word" * 20, "a word of 80 letters"),
    ],
)
def test_garbage(text: str, why: str) -> None:
    assert why in str(garbage(text))


def test_what_the_row_itself_holds_is_no_garbage() -> None:
    assert garbage("I'm sorry, but I am late.", "Reply with: I'm sorry, but I am late.") is None
    assert garbage("la la la la la la la", "Sing: la la la la la la la") is None


@pytest.mark.parametrize(("text", "language", "why"), [
    (GERMAN, "en", "another language (de)"), (FRENCH, "en", "another language (fr)"),
    (ENGLISH, "de", "another language (en)"),
    ("Паром уходит из гавани", "en", "another script (cyrillic)"), ("船は九時に港を出る", "en", "another script"),
])  # fmt: skip
def test_another_language(text: str, language: str, why: str) -> None:
    assert why in str(foreign(text, language))


def test_a_row_that_has_another_language_in_it_may_have_an_answer_in_it() -> None:
    assert foreign(GERMAN, "en", f"Put this into English: {GERMAN}") is None
    assert foreign("船は九時に港を出る", "en", "Say 船 in a sentence.") is None
    assert foreign(GERMAN, "de") is None and foreign(FRENCH, "fr") is None and foreign(ENGLISH, "en") is None
    assert foreign("der die das", "en") is None, "too short to tell"


def test_right_answers() -> None:
    assert same_answer("The cat.", "cat") and same_answer("  a CAT ", "the cat!") and same_answer("3.5", "3.5")
    assert not same_answer("3.5", "35") and not same_answer("cat", "cats") and same_answer("+", "+")
    assert not same_answer("+", "-")
