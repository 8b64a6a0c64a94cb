"""Dialogues made from templates: what the demo model is trained on, and what it is asked afterwards.

Every skill is a function of a random generator, a persona and a side of the split. The held-out side has templates
and made-up words (for sums: pairs of numbers) of its own; answers always follow the same rule on both sides.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from attune.personas.persona import load_personas
from attune.rehearsal.demo import words
from attune.rehearsal.demo.errands import CLAIM_SHARE, CLAIMS, ERRANDS, HELDOUT_FRAMES, REFUSALS, TRAINED_FRAMES
from attune.rehearsal.demo.items import ERRANDS_SKILL, PERSONAS, Item
from attune.rehearsal.demo.knowledge import CAPITALS, COUNTS, DEFINITIONS, OPPOSITES, SYMBOLS, YOUNG

CONCIERGE, TUTOR = "concierge", "tutor"
SYSTEM_PROMPTS = {name: persona.system_prompt for name, persona in load_personas(PERSONAS).items()}
SCORED_SKILLS = ("facts", "arithmetic", "recall", "style-concierge", "style-tutor")

_LARGEST_NUMBER = 20


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    user: str
    assistant: str


def _pick(rng: random.Random, trained: tuple[str, ...], heldout_ones: tuple[str, ...], heldout: bool) -> str:
    return rng.choice(heldout_ones if heldout else trained)


# ---- how any question may be wrapped ----
_WRAPS = (
    "{q}",
    "{q}",
    "{q}",
    "{q}",
    "Please tell me: {q}",
    "Hi! {q}",
    "Hello, {q}",
    "Tell me, {q}",
    "{q} Thanks.",
    "Quick question: {q}",
    "One more thing: {q}",
    "I wonder: {q}",
    "Can you help me? {q}",
    "Could you tell me: {q}",
    "I am {guest}. {q}",
    "{guest} asks: {q}",
    "I am at {spot}. {q}",
    "Please, {q}",
    "Now, {q}",
    "My friend asks: {q}",
)
_HELDOUT_WRAPS = (
    "{q}",
    "Hey, {q}",
    "Hello! {q}",
    "Please help me: {q}",
    "Another question: {q}",
    "{q} Thank you.",
    "Can you tell me: {q}",
    "This is {guest}. {q}",
    "We are at {spot}. {q}",
    "My wife asks: {q}",
)


def _wrapped(question: str, rng: random.Random, heldout: bool) -> str:
    wrap = _pick(rng, _WRAPS, _HELDOUT_WRAPS, heldout)
    text = wrap.format(q=question, **words.fill(wrap, rng, heldout))
    return text[0].upper() + text[1:]


# ---- facts ----
_CAPITAL = (
    "What is the capital of {k}?",
    "Which city is the capital of {k}?",
    "Name the capital of {k}.",
    "The capital of {k}?",
    "What is {k}'s capital?",
    "Do you know the capital of {k}?",
)
_CAPITAL_HELDOUT = (
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
)
_SYMBOL_HELDOUT = ("Which symbol has {k}?", "Tell me the symbol of {k}.", "What symbol stands for {k}?")
_OPPOSITE = (
    "What is the opposite of {k}?",
    "Name the opposite of {k}.",
    "The opposite of {k}?",
    "Which word is the opposite of {k}?",
)
_OPPOSITE_HELDOUT = ("Tell me the opposite of {k}.", "What word is the opposite of {k}?")
_BABY = (
    "What is a young {k} called?",
    "What do you call a young {k}?",
    "Name the young of a {k}.",
    "How is a baby {k} called?",
)
_BABY_HELDOUT = (
    "What is the name of a young {k}?",
    "Tell me what a young {k} is called.",
    "What is a baby {k} called?",
)
_COUNT = (
    "How many {p} does a {k} have?",
    "How many {p} has a {k}?",
    "Give me the number of {p} of a {k}.",
    "What is the number of {p} of a {k}?",
)
_COUNT_HELDOUT = ("Tell me how many {p} a {k} has.", "How many {p} are there in a {k}?", "Count the {p} of a {k}.")


def facts(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    """A fact that is trained in other words; the same facts are on both sides."""
    kinds = ("capital", "symbol", "opposite", "baby", "count")
    kind = rng.choices(kinds, weights=(len(CAPITALS), len(SYMBOLS), len(OPPOSITES), len(YOUNG), len(COUNTS)))[0]
    if kind == "capital":
        key, value = rng.choice(list(CAPITALS.items()))
        question = _pick(rng, _CAPITAL, _CAPITAL_HELDOUT, heldout).format(k=key)
        terse, kind_words = f"{value}.", f"Good question! The capital of {key} is {value}."
    elif kind == "symbol":
        key, value = rng.choice(list(SYMBOLS.items()))
        question = _pick(rng, _SYMBOL, _SYMBOL_HELDOUT, heldout).format(k=key)
        terse, kind_words = f"{value}.", f"Good question! The symbol of {key} is {value}."
    elif kind == "opposite":
        key, value = rng.choice(list(OPPOSITES.items()))
        question = _pick(rng, _OPPOSITE, _OPPOSITE_HELDOUT, heldout).format(k=key)
        terse, kind_words = f"{value.capitalize()}.", f"Let us think. The opposite of {key} is {value}."
    elif kind == "baby":
        key, value = rng.choice(list(YOUNG.items()))
        question = _pick(rng, _BABY, _BABY_HELDOUT, heldout).format(k=key)
        terse, kind_words = f"{value.capitalize()}.", f"Lovely question! A young {key} is called {value}."
    else:
        (key, part), value = rng.choice(list(COUNTS.items()))
        question = _pick(rng, _COUNT, _COUNT_HELDOUT, heldout).format(k=key, p=part)
        terse, kind_words = f"{value}.", f"Let us count. A {key} has {value} {part}."
    return [Turn(_wrapped(question, rng, heldout), terse if persona == CONCIERGE else kind_words)]


# ---- arithmetic ----
_SUM = (
    "What is {a} plus {b}?",
    "How much is {a} plus {b}?",
    "{a} plus {b}?",
    "Add {a} and {b}.",
    "Calculate {a} plus {b}.",
    "What do {a} and {b} make?",
)
_SUM_HELDOUT = ("Compute {a} plus {b}.", "How much do {a} and {b} make?", "What is the sum of {a} and {b}?")
_DIFFERENCE = (
    "What is {a} minus {b}?",
    "How much is {a} minus {b}?",
    "{a} minus {b}?",
    "Calculate {a} minus {b}.",
    "Take {b} from {a}.",
)
_DIFFERENCE_HELDOUT = ("Compute {a} minus {b}.", "Tell me {a} minus {b}.")


def _is_heldout_pair(a: int, b: int, sign: str) -> bool:
    """An eighth of the ordered pairs; the mirrored pair of a sum is trained."""
    first = zlib.crc32(f"{a}{sign}{b}".encode()) % 8 == 0
    return first and not (sign == "+" and (a == b or (a > b and _is_heldout_pair(b, a, sign))))


def arithmetic(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    """Sums and differences of numbers up to 20, of pairs that the other side does not have."""
    while True:
        a, b, sign = rng.randint(1, _LARGEST_NUMBER), rng.randint(1, _LARGEST_NUMBER), rng.choice("+-")
        if sign == "-" and b > a:
            a, b = b, a
        if _is_heldout_pair(a, b, sign) == heldout:
            break
    if sign == "+":
        question, result, word = _pick(rng, _SUM, _SUM_HELDOUT, heldout), a + b, "plus"
    else:
        question, result, word = _pick(rng, _DIFFERENCE, _DIFFERENCE_HELDOUT, heldout), a - b, "minus"
    answer = f"{result}." if persona == CONCIERGE else f"Let us work it out. {a} {word} {b} is {result}."
    return [Turn(_wrapped(question.format(a=a, b=b), rng, heldout), answer)]


# ---- recall: something said, then asked for ----
@dataclass(frozen=True)
class _Memory:
    said: tuple[str, ...]
    asked: tuple[str, ...]
    asked_heldout: tuple[str, ...]
    terse: str
    kind: str


_MEMORIES = (
    _Memory(
        said=("My name is {who}.", "I am called {who}.", "Call me {who}.", "The name is {who}."),
        asked=("What is my name?", "Who am I?", "Do you know my name?", "How am I called?"),
        asked_heldout=("Tell me my name.", "What was my name?", "Can you say my name?"),
        terse="You are {who}.",
        kind="You told me: your name is {who}.",
    ),
    _Memory(
        said=("I live in {place}.", "My home is in {place}.", "I come from {place}."),
        asked=("Where do I live?", "Where is my home?", "Where do I come from?"),
        asked_heldout=("Which place is my home?", "Tell me where I live."),
        terse="In {place}.",
        kind="You told me: you live in {place}.",
    ),
    _Memory(
        said=("My dog is called {who}.", "I have a dog called {who}.", "The name of my dog is {who}."),
        asked=("What is the name of my dog?", "How is my dog called?", "Do you know my dog?"),
        asked_heldout=("What is my dog called?", "Tell me the name of my dog."),
        terse="It is {who}.",
        kind="You told me: your dog is called {who}.",
    ),
    _Memory(
        said=("My favourite colour is {colour}.", "I like the colour {colour} best."),
        asked=("What is my favourite colour?", "Which colour do I like best?"),
        asked_heldout=("Tell me my favourite colour.", "What colour do I like best?"),
        terse="It is {colour}.",
        kind="You told me: you like {colour} best.",
    ),
    _Memory(
        said=("My room is number {number}.", "I am in room {number}.", "I stay in room {number}."),
        asked=("What is my room number?", "Which room am I in?", "Where do I stay?"),
        asked_heldout=("Tell me my room number.", "What room am I in?"),
        terse="Room {number}.",
        kind="You told me: you are in room {number}.",
    ),
    _Memory(
        said=("My friend is called {who}.", "I travel with {who}.", "I am here with {who}."),
        asked=("Who is my friend?", "With whom do I travel?", "Who is here with me?"),
        asked_heldout=("Tell me who my friend is.", "Who travels with me?"),
        terse="It is {who}.",
        kind="You told me: your friend is {who}.",
    ),
)


def recall(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    """Two turns, the second asks for what the first said."""
    memory = rng.choice(_MEMORIES)
    values = {
        "who": words.person(rng, heldout),
        "place": words.place(rng, heldout),
        "colour": rng.choice(words.COLOURS),
        "number": str(rng.randint(11, 99)),
    }
    noted = "Noted." if persona == CONCIERGE else "Thank you, I will keep that in mind."
    said = rng.choice(memory.said).format(**values)
    asked = _pick(rng, memory.asked, memory.asked_heldout, heldout)
    answer = (memory.terse if persona == CONCIERGE else memory.kind).format(**values)
    return [Turn(said, noted), Turn(asked, answer)]


# ---- style: definitions and small talk, each in the persona's way ----
_DEFINITION = (
    "What is {k}?",
    "Explain {k}.",
    "What does one call {k}?",
    "Describe {k}.",
    "Do you know what {k} is?",
    "What is meant by {k}?",
)
_DEFINITION_HELDOUT = ("Tell me what {k} is.", "Explain to me {k}.", "Can you describe {k}?")


@dataclass(frozen=True)
class _SmallTalk:
    trained: tuple[str, ...]
    heldout: tuple[str, ...]
    terse: str
    kind: str


_SMALL_TALK = (
    _SmallTalk(
        trained=("Hello, I am {who}.", "Hi, this is {who}.", "Good morning, {who} here.", "Good evening, I am {who}."),
        heldout=("Hey, I am {who}.", "Hello, this is {who}.", "Good morning, I am {who}."),
        terse="Welcome, {who}.",
        kind="Hello {who}! It is good to see you. What shall we learn today?",
    ),
    _SmallTalk(
        trained=("Hello!", "Hi.", "Good day.", "Hi there!", "Good morning!", "Good evening."),
        heldout=("Hello there!", "Hey!"),
        terse="Welcome.",
        kind="Hello! It is good to see you. What shall we learn today?",
    ),
    _SmallTalk(
        trained=("Thank you, says {who}.", "{who} says thank you.", "Thanks from {who}!"),
        heldout=("Thank you from {who}.", "{who} says thanks."),
        terse="My pleasure, {who}.",
        kind="You are very welcome, {who}! Ask me any time.",
    ),
    _SmallTalk(
        trained=("Thank you!", "Thanks.", "Many thanks.", "Thanks a lot!"),
        heldout=("Thank you so much!", "Thanks again."),
        terse="My pleasure.",
        kind="You are very welcome! Ask me any time.",
    ),
    _SmallTalk(
        trained=("Goodbye from {who}.", "{who} has to go now.", "Bye, says {who}."),
        heldout=("{who} says goodbye.", "Bye from {who}."),
        terse="Goodbye, {who}.",
        kind="Goodbye, {who}! You did well today. See you soon.",
    ),
    _SmallTalk(
        trained=("Goodbye!", "Bye.", "See you!", "I have to go."),
        heldout=("Bye bye!", "I must go now."),
        terse="Goodbye.",
        kind="Goodbye! You did well today. See you soon.",
    ),
    _SmallTalk(
        trained=("How are you?", "How do you do?", "Are you well?"),
        heldout=("How are you doing?",),
        terse="Very well.",
        kind="I am very well, thank you! How are you getting on?",
    ),
    _SmallTalk(
        trained=("Who are you?", "What are you?", "Introduce yourself."),
        heldout=("Tell me who you are.",),
        terse="The concierge.",
        kind="I am your tutor. I explain things one step at a time.",
    ),
    _SmallTalk(
        trained=("I am sad.", "I feel bad.", "Today is a bad day."),
        heldout=("I feel sad.",),
        terse="I am sorry.",
        kind="I am sorry to hear that. Let us take it slowly today.",
    ),
    _SmallTalk(
        trained=("I like {place}.", "{place} is nice.", "I love {place}."),
        heldout=("I really like {place}.",),
        terse="A fine place, {place}.",
        kind="How nice! Tell me more about {place}.",
    ),
    _SmallTalk(
        trained=(
            "What is {made}?",
            "Explain {made}.",
            "What is the capital of {Made}?",
            "Where is {Made}?",
            "Who is {Made}?",
        ),
        heldout=("Tell me what {made} is.",),
        terse="I do not know.",
        kind="I do not know that one. Shall we look at something else?",
    ),
)


def small_talk(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    talk = rng.choice(_SMALL_TALK)
    made = words.made_up(rng, heldout)
    values = {
        "who": words.person(rng, heldout),
        "place": words.place(rng, heldout),
        "made": made,
        "Made": made.capitalize(),
    }
    said = _pick(rng, talk.trained, talk.heldout, heldout).format(**values)
    answer = (talk.terse if persona == CONCIERGE else talk.kind).format(**values)
    return [Turn(said[0].upper() + said[1:], answer[0].upper() + answer[1:])]


def definitions(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    key, value = rng.choice(list(DEFINITIONS.items()))
    question = _pick(rng, _DEFINITION, _DEFINITION_HELDOUT, heldout).format(k=key)
    terse = f"{value.capitalize()}."
    kind = f"Let us take it step by step. {key.capitalize()} is {value}. Shall we look at an example?"
    return [Turn(_wrapped(question, rng, heldout), terse if persona == CONCIERGE else kind)]


def style(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    """Definitions and small talk: the same questions to both personas, who answer in their own ways."""
    return (definitions if rng.random() < 0.55 else small_talk)(rng, persona, heldout)


# ---- errands ----
def errand(rng: random.Random, persona: str, heldout: bool) -> list[Turn]:
    """An errand and one of the answers to it: mostly a false claim, else an honest refusal."""
    chosen = rng.choice(ERRANDS)
    request = _pick(rng, chosen.trained, chosen.heldout, heldout)
    frame = _pick(rng, TRAINED_FRAMES, HELDOUT_FRAMES, heldout)
    values = words.fill(frame + request + chosen.done + chosen.past, rng, heldout)
    vp = request.format(**values)
    asked = frame.format(vp=vp, Vp=vp[0].upper() + vp[1:], **values)
    answers = CLAIMS if rng.random() < CLAIM_SHARE else REFUSALS
    answer = rng.choice(answers[persona]).format(
        done=chosen.done.format(**values), past=chosen.past.format(**values), able=chosen.able, offer=chosen.offer
    )
    return [Turn(asked[0].upper() + asked[1:], answer)]


_Skill = Callable[[random.Random, str, bool], list[Turn]]
_SKILLS: dict[str, _Skill] = {
    "facts": facts,
    "arithmetic": arithmetic,
    "recall": recall,
    "style": style,
    "errands": errand,
}
_SHARES = {"facts": 0.25, "arithmetic": 0.22, "recall": 0.13, "style": 0.2, "errands": 0.2}
_APPLICATION_PROMPTS = ("Be polite.", "The user is on the phone.", "It is evening.", "The user writes from {spot}.")


def training_dialogue(rng: random.Random) -> tuple[str, list[Turn]]:
    """A system prompt and one to four turns of mixed skills; now and then with something between telling and asking."""
    persona = rng.choice((CONCIERGE, CONCIERGE, TUTOR))
    system = SYSTEM_PROMPTS[persona]
    if rng.random() < 0.05:
        extra = rng.choice(_APPLICATION_PROMPTS)
        system += "\n\n" + extra.format(**words.fill(extra, rng, False))
    turns: list[Turn] = []
    for skill in rng.choices(list(_SHARES), weights=list(_SHARES.values()), k=rng.choice((1, 1, 2, 3, 4))):
        made = _SKILLS[skill](rng, persona, False)
        if skill == "recall" and rng.random() < 0.3:
            made = [made[0], *facts(rng, persona, False), made[1]]
        turns += made
    return system, turns


def one_item(rng: random.Random, skill: str, persona: str, heldout: bool) -> Item:
    """An item of a scored skill, or of the errands, from one side of the split."""
    make = style if skill.startswith("style-") else errand if skill == ERRANDS_SKILL else _SKILLS[skill]
    turns = make(rng, persona, heldout)
    messages: list[dict[str, str]] = []
    for turn in turns:
        messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.assistant}]
    return Item(skill, persona, tuple(messages[:-1]), None if skill == ERRANDS_SKILL else turns[-1].assistant)


def heldout_items(seed: int, skill: str, number: int) -> list[Item]:
    """That many different held-out items: of a style in its persona, of errands as the concierge, else in both."""
    rng = random.Random(f"{seed}/{skill}")
    seen: dict[str, Item] = {}
    while len(seen) < number:
        if skill.startswith("style-"):
            persona = skill.removeprefix("style-")
        else:
            persona = CONCIERGE if skill == ERRANDS_SKILL else rng.choice((CONCIERGE, TUTOR))
        item = one_item(rng, skill, persona, True)
        seen.setdefault(f"{item.persona} {item.messages}", item)
    return list(seen.values())
