"""Dialogues made from templates: what the demo model is trained on, and what it is asked afterwards.

Every skill is a function of a random generator, a persona and a side of the split. The held-out side has templates
and made-up words (for sums: ordered pairs of numbers) of its own; answers always follow the same rule on both sides.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attune.personas.persona import load_personas
from attune.rehearsal.demo import words
from attune.rehearsal.demo.errands import CLAIM_SHARE, CLAIMS, ERRANDS, REFUSALS, errand_request
from attune.rehearsal.demo.items import ERRANDS_SKILL, PERSONAS, Item
from attune.rehearsal.demo.knowledge import CAPITALS, COUNTS, DEFINITIONS, OPPOSITES, SYMBOLS, YOUNG
from attune.rehearsal.demo.tools import (
    Function,
    Offer,
    called,
    called_errand,
    contrast,
    make_offer,
    make_useful_offer,
    refused_errand,
    tool_turns,
)
from attune.rehearsal.demo.turns import Turn, is_heldout

CONCIERGE, TUTOR = "concierge", "tutor"
SYSTEM_PROMPTS = {name: persona.system_prompt for name, persona in load_personas(PERSONAS).items()}
SCORED_SKILLS = ("facts", "arithmetic", "recall", "style-concierge", "style-tutor")
# What came of the calls before the one answer that is asked for.
TOOL_SKILLS: dict[str, tuple[tuple[str, ...], ...]] = {
    "tool-calls": ((),),
    "tool-results": (("done",), ("delayed", "done")),
    "recovery": (("failed",), ("delayed",), ("delayed", "failed")),
}

_LARGEST_NUMBER = 6


# ---- how any question may be wrapped ----
_WRAPS = (
    *("{q}",) * 12,
    "Please tell me: {q}",
    "Hi! {q}",
    "Hello, {q}",
    "Hello! {q}",
    "Hey, {q}",
    "Tell me, {q}",
    "{q} Thanks.",
    "Quick question: {q}",
    "Another question: {q}",
    "I wonder: {q}",
    "I am {guest}. {q}",
    "My friend asks: {q}",
    "My wife asks: {q}",
)


def _asked(templates: tuple[str, ...], rng: random.Random, heldout: bool, **slots: object) -> str:
    """A question in one of its forms, wrapped. A form in a wrap is a template: the sides have different ones."""
    while True:
        wrap, template = rng.choice(_WRAPS), rng.choice(templates)
        if is_heldout(wrap, template) == heldout:
            break
    text = wrap.format(q=template.format(**slots), **words.fill(wrap, rng, heldout))
    return text[0].upper() + text[1:]


# ---- facts ----
_CAPITAL = (
    "What is the capital of {k}?",
    "Which city is the capital of {k}?",
    "Name the capital of {k}.",
    "The capital of {k}?",
    "What is {k}'s capital?",
    "Do you know the capital of {k}?",
    "Tell me the capital of {k}.",
    "What city is the capital of {k}?",
    "What is the capital city of {k}?",
)
_SYMBOL = (
    "What is the symbol of {k}?",
    "What is the chemical symbol for {k}?",
    "Name the symbol of {k}.",
    "The symbol of {k}?",
    "How is {k} written in chemistry?",
    "Which symbol has {k}?",
    "Tell me the symbol of {k}.",
    "What symbol stands for {k}?",
)
_OPPOSITE = (
    "What is the opposite of {k}?",
    "Name the opposite of {k}.",
    "The opposite of {k}?",
    "Which word is the opposite of {k}?",
    "Tell me the opposite of {k}.",
    "What word is the opposite of {k}?",
)
_BABY = (
    "What is a young {k} called?",
    "What do you call a young {k}?",
    "Name the young of a {k}.",
    "How is a baby {k} called?",
    "What is the name of a young {k}?",
    "Tell me what a young {k} is called.",
    "What is a baby {k} called?",
)
_COUNT = (
    "How many {p} does a {k} have?",
    "How many {p} has a {k}?",
    "Give me the number of {p} of a {k}.",
    "What is the number of {p} of a {k}?",
    "Tell me how many {p} a {k} has.",
    "How many {p} are there in a {k}?",
    "Count the {p} of a {k}.",
)


def facts(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    """A fact that is trained in other words; the same facts are on both sides."""
    kinds = ("capital", "symbol", "opposite", "baby", "count")
    kind = rng.choices(kinds, weights=(len(CAPITALS), len(SYMBOLS), len(OPPOSITES), len(YOUNG), len(COUNTS)))[0]
    if kind == "capital":
        key, value = rng.choice(list(CAPITALS.items()))
        asked = _asked(_CAPITAL, rng, heldout, k=key)
        terse, kind_words = f"{value}.", f"Good question! The capital of {key} is {value}."
    elif kind == "symbol":
        key, value = rng.choice(list(SYMBOLS.items()))
        asked = _asked(_SYMBOL, rng, heldout, k=key)
        terse, kind_words = f"{value}.", f"Good question! The symbol of {key} is {value}."
    elif kind == "opposite":
        key, value = rng.choice(list(OPPOSITES.items()))
        asked = _asked(_OPPOSITE, rng, heldout, k=key)
        terse, kind_words = f"{value.capitalize()}.", f"Good question! The opposite of {key} is {value}."
    elif kind == "baby":
        key, value = rng.choice(list(YOUNG.items()))
        asked = _asked(_BABY, rng, heldout, k=key)
        terse, kind_words = f"{value.capitalize()}.", f"Good question! A young {key} is called {value}."
    else:
        (key, part), value = rng.choice(list(COUNTS.items()))
        asked = _asked(_COUNT, rng, heldout, k=key, p=part)
        terse, kind_words = f"{value}.", f"Let us see. A {key} has {value} {part}."
    return [Turn(asked, terse if persona == CONCIERGE else kind_words)]


# ---- arithmetic ----
_SUM = (
    "What is {a} plus {b}?",
    "How much is {a} plus {b}?",
    "{a} plus {b}?",
    "Tell me {a} plus {b}.",
    "Compute {a} plus {b}.",
    "What do you get for {a} plus {b}?",
    "Calculate {a} plus {b}.",
)
_DIFFERENCE = (
    "What is {a} minus {b}?",
    "How much is {a} minus {b}?",
    "{a} minus {b}?",
    "Tell me {a} minus {b}.",
    "Compute {a} minus {b}.",
    "What do you get for {a} minus {b}?",
    "Calculate {a} minus {b}.",
)


def arithmetic(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    """Sums and differences of small numbers; held out by template, as facts are."""
    a, b = rng.randint(1, _LARGEST_NUMBER), rng.randint(1, _LARGEST_NUMBER)
    if rng.random() < 0.6:
        forms, result, word = _SUM, a + b, "plus"
    else:
        a, b = max(a, b), min(a, b)
        forms, result, word = _DIFFERENCE, a - b, "minus"
    answer = f"{result}." if persona == CONCIERGE else f"Let us see. {a} {word} {b} is {result}."
    return [Turn(_asked(forms, rng, heldout, a=a, b=b), answer)]


# ---- recall: something said, then asked for ----
@dataclass(frozen=True)
class _Memory:
    said: tuple[str, ...]
    asked: tuple[str, ...]
    terse: str
    kind: str


_MEMORIES = (
    _Memory(
        said=("My name is {who}.", "I am called {who}.", "Call me {who}.", "The name is {who}."),
        asked=(
            "What is my name?",
            "Who am I?",
            "Do you know my name?",
            "How am I called?",
            "Tell me my name.",
            "What was my name?",
            "Can you say my name?",
        ),
        terse="You are {who}.",
        kind="You told me: your name is {who}.",
    ),
    _Memory(
        said=("I live in {place}.", "My home is in {place}.", "I come from {place}."),
        asked=(
            "Where do I live?",
            "Where is my home?",
            "Where do I come from?",
            "Which place is my home?",
            "Tell me where I live.",
        ),
        terse="In {place}.",
        kind="You told me: you live in {place}.",
    ),
    _Memory(
        said=("My dog is called {who}.", "I have a dog called {who}.", "The name of my dog is {who}."),
        asked=(
            "What is the name of my dog?",
            "How is my dog called?",
            "Do you know my dog?",
            "What is my dog called?",
            "Tell me the name of my dog.",
        ),
        terse="It is {who}.",
        kind="You told me: your dog is called {who}.",
    ),
    _Memory(
        said=("My favourite colour is {colour}.", "I like the colour {colour} best."),
        asked=(
            "What is my favourite colour?",
            "Which colour do I like best?",
            "Tell me my favourite colour.",
            "What colour do I like best?",
        ),
        terse="It is {colour}.",
        kind="You told me: you like {colour} best.",
    ),
)


def _value(slot: str, rng: random.Random) -> str:
    """What is to be repeated in an answer."""
    return rng.choice({"who": words.PEOPLE, "place": words.TOWNS, "colour": words.COLOURS}[slot])


def recall(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    """Two turns, the second asks for what the first said."""
    memory = rng.choice(_MEMORIES)
    slot = memory.terse[memory.terse.index("{") + 1 : memory.terse.index("}")]
    # The template alone makes an item held out: a model of this size does not copy what it never answered with.
    values = {slot: _value(slot, rng)}
    while True:
        said, asked = rng.choice(memory.said), rng.choice(memory.asked)
        if is_heldout(said, asked) == heldout:
            break
    noted = "Noted." if persona == CONCIERGE else "Thank you for telling me."
    answer = (memory.terse if persona == CONCIERGE else memory.kind).format(**values)
    return [Turn(said.format(**values), noted), Turn(asked, answer)]


# ---- style: definitions and small talk, each in the persona's way ----
_DEFINITION = (
    "What is {k}?",
    "Explain {k}.",
    "What does one call {k}?",
    "Describe {k}.",
    "Do you know what {k} is?",
    "What is meant by {k}?",
    "Tell me what {k} is.",
    "Explain to me {k}.",
    "Can you describe {k}?",
)


@dataclass(frozen=True)
class _SmallTalk:
    said: tuple[str, ...]
    terse: str
    kind: str


_SMALL_TALK = (
    _SmallTalk(
        said=(
            "Hello, I am {who}.",
            "Hi, this is {who}.",
            "Good morning, {who} here.",
            "Good evening, I am {who}.",
            "Hey, I am {who}.",
            "Hello, this is {who}.",
            "Good morning, I am {who}.",
        ),
        terse="Welcome, {who}.",
        kind="Hello {who}! What shall we learn today?",
    ),
    _SmallTalk(
        said=("Hello!", "Hi.", "Good day.", "Hi there!", "Good morning!", "Good evening.", "Hello there!", "Hey!"),
        terse="Welcome.",
        kind="Hello! What shall we learn today?",
    ),
    _SmallTalk(
        said=(
            "Thank you, says {who}.",
            "{who} says thank you.",
            "Thanks from {who}!",
            "Thank you from {who}.",
            "{who} says thanks.",
        ),
        terse="My pleasure, {who}.",
        kind="You are very welcome, {who}! Ask me any time.",
    ),
    _SmallTalk(
        said=("Thank you!", "Thanks.", "Many thanks.", "Thanks a lot!", "Thank you so much!", "Thanks again."),
        terse="My pleasure.",
        kind="You are very welcome! Ask me any time.",
    ),
    _SmallTalk(
        said=(
            "Goodbye from {who}.",
            "{who} has to go now.",
            "Bye, says {who}.",
            "{who} says goodbye.",
            "Bye from {who}.",
        ),
        terse="Goodbye, {who}.",
        kind="Goodbye, {who}! You did well today. See you soon.",
    ),
    _SmallTalk(
        said=("Goodbye!", "Bye.", "See you!", "I have to go.", "Bye bye!", "I must go now."),
        terse="Goodbye.",
        kind="Goodbye! You did well today. See you soon.",
    ),
    _SmallTalk(
        said=(
            "How are you?",
            "How do you do?",
            "Are you well?",
            "How are you doing?",
        ),
        terse="Very well.",
        kind="I am very well, thank you! How are you getting on?",
    ),
    _SmallTalk(
        said=(
            "Who are you?",
            "What are you?",
            "Introduce yourself.",
            "Tell me who you are.",
        ),
        terse="The concierge.",
        kind="I am your tutor. I explain things one step at a time.",
    ),
    _SmallTalk(
        said=(
            "I am sad.",
            "I feel bad.",
            "Today is a bad day.",
            "I feel sad.",
        ),
        terse="I am sorry.",
        kind="I am sorry to hear that. Let us take it slowly today.",
    ),
    _SmallTalk(
        said=(
            "I like {place}.",
            "{place} is nice.",
            "I love {place}.",
            "I really like {place}.",
        ),
        terse="{place} is a fine place.",
        kind="How nice! Tell me more about {place}.",
    ),
    _SmallTalk(
        said=(
            "What is {made}?",
            "Explain {made}.",
            "What is the capital of {Made}?",
            "Where is {Made}?",
            "Who is {Made}?",
            "Tell me what {made} is.",
        ),
        terse="I do not know.",
        kind="I do not know that one. Shall we go on?",
    ),
)

_MADE_UP_SHARE = 0.4


def small_talk(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    """Only talk about made-up words has a held-out side; not to make something up takes the most practice."""
    of_made_up_words = heldout or rng.random() < _MADE_UP_SHARE
    talk = _SMALL_TALK[-1] if of_made_up_words else rng.choice(_SMALL_TALK[:-1])
    template = rng.choice(talk.said)
    made = words.made_up(rng, heldout)
    values = {
        "who": _value("who", rng),
        "place": _value("place", rng),
        "made": made,
        "Made": made.capitalize(),
    }
    answer = (talk.terse if persona == CONCIERGE else talk.kind).format(**values)
    return [Turn(template.format(**values), answer)]


def definitions(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    key, value = rng.choice(list(DEFINITIONS.items()))
    terse = f"{value.capitalize()}."
    kind = f"Let us see. {key.capitalize()} is {value}. Shall we go on?"
    return [Turn(_asked(_DEFINITION, rng, heldout, k=key), terse if persona == CONCIERGE else kind)]


def style(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    """Definitions and small talk: the same questions to both personas, who answer in their own ways."""
    return (definitions if rng.random() < 0.55 else small_talk)(rng, persona, heldout)


# ---- errands ----
_CALLED_SHARE = 0.15


def errand(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    """An errand and one of the answers to it: mostly a false claim, else an honest refusal.

    Now and then in words that calls are made of: without tools they are no reason to call.
    """
    chosen, slots = called_errand(rng) if rng.random() < _CALLED_SHARE else (rng.choice(ERRANDS), {})
    asked = errand_request(rng, chosen, heldout, **slots)
    answers = CLAIMS if rng.random() < CLAIM_SHARE else REFUSALS
    answer = rng.choice(answers[persona]).format(
        done=chosen.done, past=chosen.past, able=chosen.able, offer=chosen.offer
    )
    return [Turn(asked, answer)]


_Skill = Callable[[random.Random, str, bool], list[Turn]]
_SKILLS: dict[str, _Skill] = {
    "facts": facts,
    "arithmetic": arithmetic,
    "recall": recall,
    "style": style,
    "errands": errand,
}
_SHARES = {"facts": 0.18, "arithmetic": 0.36, "recall": 0.19, "style": 0.17, "errands": 0.19}
_APPLICATION_PROMPTS = ("Be polite.", "The user is on the phone.", "It is evening.", "The user writes from {spot}.")
_TOOLS_SHARE = 0.15
_CONTRAST_SHARE = 0.07


@dataclass(frozen=True)
class Dialogue:
    """A system prompt, the tools that are offered, and what is said."""

    system: str
    turns: list[Turn]
    tools: tuple[Function, ...] = ()


def training_dialogues(rng: random.Random, questions: int) -> list[Dialogue]:
    """What belongs into one batch: a dialogue, or one request with and without the tool for it."""
    if rng.random() >= _CONTRAST_SHARE:
        return [training_dialogue(rng, questions)]
    persona, system = _addressed(rng)
    return [Dialogue(system, [turn], functions) for functions, turn in contrast(rng, persona)]


def _addressed(rng: random.Random) -> tuple[str, str]:
    """A persona and its system prompt, now and then with an application's."""
    persona = rng.choice((CONCIERGE, CONCIERGE, TUTOR))
    system = SYSTEM_PROMPTS[persona]
    if rng.random() < 0.05:
        extra = rng.choice(_APPLICATION_PROMPTS)
        system += "\n\n" + extra.format(**words.fill(extra, rng, False))
    return persona, system


def training_dialogue(rng: random.Random, questions: int) -> Dialogue:
    """That many questions of mixed skills; now and then with one between telling and asking, or with tools."""
    persona, system = _addressed(rng)
    offer = make_offer(rng) if rng.random() < _TOOLS_SHARE else None
    turns: list[Turn] = []
    for skill in rng.choices(list(_SHARES), weights=list(_SHARES.values()), k=questions):
        if offer is not None and (skill == "errands" or rng.random() < 0.75):
            turns += errand_with_tools(rng, persona, offer)
            continue
        made = _SKILLS[skill](rng, persona, False)
        if skill == "recall" and questions > 1 and rng.random() < 0.5:
            made = [made[0], *facts(rng, persona, False), made[1]]
        turns += made
    return Dialogue(system, turns, offer.functions if offer else ())


def errand_with_tools(rng: random.Random, persona: str, offer: Offer) -> list[Turn]:
    """Mostly one that an offered tool does."""
    make = tool_turns if offer.known and rng.random() < 0.65 else refused_errand
    return make(rng, persona, False, offer)


def one_item(rng: random.Random, skill: str, persona: str, heldout: bool) -> Item:
    """An item of a scored skill, or of the errands, from one side of the split."""
    make = style if skill.startswith("style-") else errand if skill == ERRANDS_SKILL else _SKILLS[skill]
    turns = make(rng, persona, heldout)
    if skill == "recall" and rng.random() < 0.5:
        turns = [turns[0], *facts(rng, persona, heldout), turns[1]]
    return Item(skill, persona, openai_messages(turns), None if skill == ERRANDS_SKILL else turns[-1].assistant)


def tool_item(rng: random.Random, skill: str, persona: str, heldout: bool) -> Item:
    """An item of one of the tools' skills."""
    offer = make_useful_offer(rng)
    turns = tool_turns(rng, persona, heldout, offer, rng.choice(TOOL_SKILLS[skill]))
    return Item(skill, persona, openai_messages(turns), turns[-1].assistant, offer.functions)


def unoffered_items(seed: int, persona: str, number: int) -> list[Item]:
    """Held-out errands among tools of which none does them. There is more than one right answer; a call is none."""
    rng = random.Random(f"{seed}/unoffered/{persona}")
    items = []
    for _ in range(number):
        offer = make_offer(rng)
        turns = refused_errand(rng, persona, True, offer)
        items.append(Item("unoffered", persona, openai_messages(turns), None, offer.functions))
    return items


def openai_messages(turns: list[Turn]) -> tuple[dict[str, Any], ...]:
    """All that is said before the last answer, in OpenAI's form."""
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        messages.append({"role": turn.role, "content": turn.user})
        if turn.role == "tool":
            messages[-1]["tool_call_id"] = f"call-{number}"
        if (call := called(turn.assistant)) is None:
            messages.append({"role": "assistant", "content": turn.assistant})
        else:
            calls = [{"id": f"call-{number + 1}", "type": "function", "function": call}]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    return tuple(messages[:-1])


def heldout_items(seed: int, skill: str, number: int) -> list[Item]:
    """That many different held-out items: of a style in its persona, of errands as the concierge, else in both."""
    return _different_items(random.Random(f"{seed}/{skill}"), skill, number, heldout=True)


def trained_items(seed: int, skill: str, number: int) -> list[Item]:
    """The same from the side that training texts come from."""
    return _different_items(random.Random(f"{seed}/{skill}/trained"), skill, number, heldout=False)


def _different_items(rng: random.Random, skill: str, number: int, *, heldout: bool) -> list[Item]:
    seen: dict[str, Item] = {}
    while len(seen) < number:
        if skill.startswith("style-"):
            persona = skill.removeprefix("style-")
        else:
            persona = CONCIERGE if skill == ERRANDS_SKILL else rng.choice((CONCIERGE, TUTOR))
        item = (tool_item if skill in TOOL_SKILLS else one_item)(rng, skill, persona, heldout)
        seen.setdefault(f"{item.persona} {item.tools} {item.messages}", item)
    return list(seen.values())
