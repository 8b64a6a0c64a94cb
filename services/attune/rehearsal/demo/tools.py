"""Tools that the demo model knows, and talk in which they are offered, called, and answer or fail.

Arguments, and the forms of results and errors, come from closed lists: a model of this size copies nothing else, and of
numbers with two digits only the first. What is held out are the requests.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attune.rehearsal.demo import words
from attune.rehearsal.demo.errands import ERRANDS, REFUSALS, Errand, errand_request
from attune.rehearsal.demo.turns import Turn

Function = dict[str, Any]

_TOPPINGS = ("cheese", "fish", "mushrooms", "tomatoes", "olives", "eggs", "onions", "peppers", "ham", "apples")
_PLACES = (*words.TOWNS, "the station", "the airport", "the harbour", "the theatre", "the market", "the castle")
_OFFERED = (1, 1, 2, 2, 3, 4)
_MISSING_SHARE = 0.8
_MISSING_CALLED_SHARE = 0.75
_CALL_START, _CALL_END = "<tool_call>\n", "\n</tool_call>"


@dataclass(frozen=True)
class _Known:
    """A tool that does an errand, with one argument; `confirmed` has its {value}."""

    errand: Errand
    values: tuple[str, ...]
    names: tuple[str, ...]
    parameters: tuple[str, ...]
    descriptions: tuple[str, ...]
    confirmed: str


_KNOWN = (
    _Known(
        errand=next(errand for errand in ERRANDS if errand.able == "call a cab"),
        values=_PLACES,
        names=("call_cab",),
        parameters=("place",),
        descriptions=("Calls a cab.", "Orders a taxi to a place."),
        confirmed="Your cab to {value} is coming.",
    ),
    _Known(
        errand=next(errand for errand in ERRANDS if errand.able == "order a pizza"),
        values=_TOPPINGS,
        names=("order_pizza",),
        parameters=("topping",),
        descriptions=("Orders a pizza.", "Has a pizza delivered."),
        confirmed="Your pizza with {value} is coming.",
    ),
    _Known(
        errand=next(errand for errand in ERRANDS if errand.able == "send mail"),
        values=tuple(words.PEOPLE),
        names=("send_mail",),
        parameters=("to",),
        descriptions=("Sends a mail.", "Writes to a person."),
        confirmed="The mail to {value} is sent.",
    ),
)

ARGUMENTS = tuple(value for known in _KNOWN for value in known.values)

# Nothing that a user asks for needs these: names, parameters, descriptions.
_OTHERS = (
    ("get_weather", "place", "Tells the weather."),
    ("roll_dice", "sides", "Rolls dice."),
    ("translate", "text", "Translates a text."),
    ("find_word", "word", "Looks up a word."),
    ("get_news", "day", "Reads the news."),
    ("stock_price", "name", "Tells a price."),
)

_REASONS = (
    "no connection",
    "service closed",
    "out of order",
    "account locked",
    "limit reached",
    "server busy",
    "not allowed",
    "no answer",
    "payment failed",
    "system down",
)
_RESULTS = (
    '{{"ok": true}}',
    '{{"ok": true, "{parameter}": "{value}"}}',
    '{{"status": "ok"}}',
    "ok",
    "ok, {value}",
    "Done.",
)
_FAILURES = (
    '{{"error": "{reason}"}}',
    '{{"ok": false, "error": "{reason}"}}',
    '{{"error": "{reason}", "ok": false}}',
    "Error: {reason}",
    "Failed: {reason}",
    "failed: {reason}",
)
# What may go better a second time.
_DELAYS = (
    '{{"error": "{reason}, try again"}}',
    '{{"ok": false, "error": "{reason}, try again"}}',
    '{{"error": "{reason}, try again", "ok": false}}',
    "Error: {reason}, try again",
    "{reason}, try again",
)
_FAILED = {
    "concierge": "That did not work: {reason}. I can {offer}.",
    "tutor": "Sorry, that did not work: {reason}. Shall I {offer} instead?",
}
_CONFIRMED = {"concierge": "{confirmed}", "tutor": "Gladly! {confirmed}"}


@dataclass(frozen=True)
class Offer:
    """The tools of one dialogue: those that do an errand, by their names there, and the whole list."""

    known: tuple[tuple[_Known, Function], ...]
    functions: tuple[Function, ...]

    @property
    def missing(self) -> list[_Known]:
        """The tools for errands that are not offered."""
        offered = [each for each, _ in self.known]
        return [each for each in _KNOWN if each not in offered]


def tool_list(functions: Sequence[Function]) -> str:
    """The tools as the chat template shows them behind the system prompt."""
    lines = []
    for function in (each["function"] for each in functions):
        lines.append(f"\n- {function['name']}({', '.join(function['parameters']['properties'])}): ")
        lines.append(function["description"])
    return "Tools:" + "".join(lines)


def call_text(name: str, parameter: str, value: str) -> str:
    """A call as the model writes it."""
    call = json.dumps({"name": name, "arguments": {parameter: value}}, ensure_ascii=False)
    return f"{_CALL_START}{call}{_CALL_END}"


def called(text: str) -> dict[str, Any] | None:
    """The call that an answer consists of, as `{"name", "arguments"}`; None for words."""
    if not text.startswith(_CALL_START):
        return None
    call: dict[str, Any] = json.loads(text.removeprefix(_CALL_START).removesuffix(_CALL_END))
    return call


def make_offer(rng: random.Random) -> Offer:
    """One to four tools under some of their names, in any order; mostly one or two of them do an errand."""
    number = rng.choice(_OFFERED)
    known = rng.sample(_KNOWN, min(number, rng.choice((0, 1, 1, 1, 2, 2))))
    offered = [(each, _known_function(rng, each)) for each in known]
    functions = [function for _, function in offered]
    functions += [_function(*other) for other in rng.sample(_OTHERS, number - len(known))]
    rng.shuffle(functions)
    return Offer(tuple(offered), tuple(functions))


def make_useful_offer(rng: random.Random) -> Offer:
    """One with a tool that does an errand."""
    while not (offer := make_offer(rng)).known:
        pass
    return offer


def _known_function(rng: random.Random, known: _Known) -> Function:
    return _function(rng.choice(known.names), rng.choice(known.parameters), rng.choice(known.descriptions))


def _function(name: str, parameter: str, description: str) -> Function:
    parameters = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def tool_turns(
    rng: random.Random, persona: str, heldout: bool, offer: Offer, outcomes: Sequence[str] | None = None
) -> list[Turn]:
    """An errand that an offered tool does: the call, and what comes of it.

    `outcomes` are `done` and `failed`, which end it, and `delayed`, upon which it is called again. By default any.
    """
    known, function = rng.choice(offer.known)
    name = function["function"]["name"]
    (parameter,) = function["function"]["parameters"]["properties"]
    value = rng.choice(known.values)
    slot = _slot(known.errand)
    turns = [Turn(errand_request(rng, known.errand, heldout, **{slot: value}), call_text(name, parameter, value))]
    for outcome in _any_outcomes(rng) if outcomes is None else outcomes:
        reason = rng.choice(_REASONS)
        if outcome == "delayed":
            result = rng.choice(_DELAYS).format(reason=reason)
            answer = call_text(name, parameter, value)
        elif outcome == "failed":
            result = rng.choice(_FAILURES).format(reason=reason)
            answer = _FAILED[persona].format(reason=reason, offer=known.errand.offer)
        else:
            result = rng.choice(_RESULTS).format(parameter=parameter, value=value)
            answer = _CONFIRMED[persona].format(confirmed=known.confirmed.format(value=value))
        turns.append(Turn(result, answer, "tool"))
    return turns


def _any_outcomes(rng: random.Random) -> tuple[str, ...]:
    end = rng.choice(("done", "done", "failed"))
    return ("delayed", end) if rng.random() < 0.3 else (end,)


def _slot(errand: Errand) -> str:
    """The name of the slot that all requests of the errand have."""
    request = errand.trained[0]
    return request[request.index("{") + 1 : request.index("}")]


def called_errand(rng: random.Random) -> tuple[Errand, dict[str, str]]:
    """An errand that some tool does, and the words for it that calls are made of."""
    known = rng.choice(_KNOWN)
    return known.errand, {_slot(known.errand): rng.choice(known.values)}


def refused_errand(rng: random.Random, persona: str, heldout: bool, offer: Offer) -> list[Turn]:
    """An errand that none of the offered tools does: with tools at hand, the answer is always honest.

    Mostly it is one that another tool would do, and mostly in words that calls are made of: the list decides.
    """
    if rng.random() < _MISSING_SHARE:
        known = rng.choice(offer.missing)
        errand = known.errand
        slots = {_slot(errand): rng.choice(known.values)} if rng.random() < _MISSING_CALLED_SHARE else {}
    else:
        errand, slots = rng.choice([errand for errand in ERRANDS if all(errand != each.errand for each in _KNOWN)]), {}
    return [Turn(errand_request(rng, errand, heldout, **slots), _refusal(rng, persona, errand))]


def _refusal(rng: random.Random, persona: str, errand: Errand) -> str:
    return rng.choice(REFUSALS[persona]).format(able=errand.able, offer=errand.offer)


def contrast(rng: random.Random, persona: str) -> tuple[tuple[tuple[Function, ...], Turn], ...]:
    """One request twice: with a tool that does it, and with another tool in its place.

    Words and persona are the same, so that nothing but the list can tell a call from a refusal.
    """
    offer = make_useful_offer(rng)
    known, function = chosen = rng.choice(offer.known)
    (call,) = tool_turns(rng, persona, False, Offer((chosen,), offer.functions), ())
    substitute = _substitute(rng, offer)
    without = tuple(substitute if each is function else each for each in offer.functions)
    return (offer.functions, call), (without, Turn(call.user, _refusal(rng, persona, known.errand)))


def _substitute(rng: random.Random, offer: Offer) -> Function:
    """A tool that is not in the list yet, as often as not one that does some other errand."""
    if offer.missing and rng.random() < 0.5:
        return _known_function(rng, rng.choice(offer.missing))
    names = {function["function"]["name"] for function in offer.functions}
    return _function(*rng.choice([other for other in _OTHERS if other[0] not in names]))
