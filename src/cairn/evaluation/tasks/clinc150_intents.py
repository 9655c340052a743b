"""The 150 intents of CLINC150 by domain, and the rule that ends its stack.

An intent is written as words: "report lost card"; `oos` stands for out of scope.
"""

from __future__ import annotations

from collections.abc import Mapping

from cairn.stacks.rules import needs

__all__ = ["DOMAINS", "OOS", "decision", "domain_of"]

OOS = "oos"

_INTENTS = {
    "auto and commute": "current location, directions, distance, gas, gas type, jump start, last maintenance, mpg,"
    " oil change how, oil change when, schedule maintenance, tire change, tire pressure, traffic, uber",
    "banking": "account blocked, balance, bill balance, bill due, freeze account, interest rate, min payment,"
    " order checks, pay bill, pin change, report fraud, routing, spending history, transactions, transfer",
    "credit cards": "application status, apr, card declined, credit limit, credit limit change, credit score,"
    " damaged card, expiration date, improve credit score, international fees, new card, redeem rewards,"
    " replacement card duration, report lost card, rewards balance",
    "home": "calendar, calendar update, next song, order, order status, play music, reminder, reminder update,"
    " shopping list, shopping list update, smart home, todo list, todo list update, update playlist, what song",
    "kitchen and dining": "accept reservations, calories, cancel reservation, confirm reservation, cook time,"
    " food last, how busy, ingredient substitution, ingredients list, meal suggestion, nutrition info, recipe,"
    " restaurant reservation, restaurant reviews, restaurant suggestion",
    "meta": "cancel, change accent, change ai name, change language, change speed, change user name, change volume,"
    " maybe, no, repeat, reset settings, sync device, user name, whisper mode, yes",
    "small talk": "are you a bot, do you have pets, fun fact, goodbye, greeting, how old are you, meaning of life,"
    " tell joke, thank you, what are your hobbies, what can i ask you, what is your name, where are you from,"
    " who do you work for, who made you",
    "travel": "book flight, book hotel, car rental, carry on, exchange rate, flight status, international visa,"
    " lost luggage, plug type, timezone, translate, travel alert, travel notification, travel suggestion, vaccines",
    "utility": "alarm, calculator, date, definition, find phone, flip coin, make call, measurement conversion,"
    " roll dice, share location, spelling, text, time, timer, weather",
    "work": "direct deposit, income, insurance, insurance change, meeting schedule, next holiday, payday, pto balance,"
    " pto request, pto request status, pto used, rollover 401k, schedule meeting, taxes, w2",
}
DOMAINS: dict[str, tuple[str, ...]] = {domain: tuple(names.split(", ")) for domain, names in _INTENTS.items()}
_DOMAIN = {intent: domain for domain, intents in DOMAINS.items() for intent in intents}


def domain_of(intent: str) -> str:
    """Returns the domain of an intent; `oos` is its own, and so is what is no intent."""
    return _DOMAIN.get(intent, OOS)


@needs("scope", "intent")
def decision(fields: Mapping[str, str]) -> str:
    """Rule: the `intent`, unless `scope` says no."""
    return OOS if fields["scope"] == "no" else fields["intent"]
