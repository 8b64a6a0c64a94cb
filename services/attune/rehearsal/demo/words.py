"""Made-up names and words, so that answers must be copied from the prompt and cannot be learnt by heart."""

import random
import zlib
from collections.abc import Callable


def _split(words: str) -> list[str]:
    return [word.strip() for word in words.split(",")]


_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aeiou"
PEOPLE = _split(
    "Anna, Ben, Carla, David, Elena, Frank, Grace, Henry, Irene, Jack, Karen, Leo, Maria, Nina, Oscar, Paul, Rosa, "
    "Sam, Tina, Victor, Alice, Felix, Hugo, Laura, Peter"
)
TOWNS = _split(
    "Milan, Porto, Lyon, Basel, Graz, Ghent, Turin, Bergen, Malmo, Krakow, Cork, Leeds, Boston, Denver, Dallas"
)
_PLACES = _split(
    "the station, the airport, the harbour, the park, the theatre, the market, the old town, the beach, the bank, "
    "the office, the school, the castle, the lake, the stadium, the library, the bridge, the garden, the hotel, "
    "the church, the tower"
)
_FOOD = _split(
    "cheese, bread, soup, apples, rice, fish, mushrooms, tomatoes, olives, noodles, cake, salad, eggs, coffee, tea, "
    "onions, peppers, ham"
)
_THINGS = _split(
    "lamp, bag, coat, bike, phone, radio, heater, washer, printer, clock, camera, umbrella, chair, boat, fan, oven, "
    "piano, suitcase"
)

COLOURS = _split("red, blue, green, yellow, black, white, brown, grey, pink, orange, purple, silver")


def is_heldout(word: str) -> bool:
    """Whether a made-up word belongs to the held-out eighth, which no training text contains."""
    return zlib.crc32(word.lower().encode()) % 8 == 0


def made_up(rng: random.Random, heldout: bool) -> str:
    """A lower-case word of two or three syllables, from the asked side of the split."""
    while True:
        word = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3))))
        if rng.random() < 0.3:
            word += rng.choice("nrsl")
        if is_heldout(word) == heldout:
            return word


def person(rng: random.Random, heldout: bool) -> str:
    """A name; held-out ones are always made up."""
    if not heldout and rng.random() < 0.15:
        return rng.choice(PEOPLE)
    return made_up(rng, heldout).capitalize()


def place(rng: random.Random, heldout: bool) -> str:
    if not heldout and rng.random() < 0.15:
        return rng.choice(_PLACES)
    return made_up(rng, heldout).capitalize() + rng.choice(("", "", " Street", " Square", " Hall", " House"))


def food(rng: random.Random, heldout: bool) -> str:
    return rng.choice(_FOOD) if not heldout and rng.random() < 0.4 else made_up(rng, heldout)


def thing(rng: random.Random, heldout: bool) -> str:
    return rng.choice(_THINGS) if not heldout and rng.random() < 0.4 else made_up(rng, heldout)


def hour(rng: random.Random) -> str:
    return rng.choice(
        (f"{rng.randint(1, 12)}", f"{rng.randint(1, 12)} o'clock", f"{rng.randint(1, 12)}:{rng.choice((15, 30, 45))}")
    )


def fill(text: str, rng: random.Random, heldout: bool) -> dict[str, str]:
    """Values for the slots that `text` names."""
    makers: dict[str, Callable[[], str]] = {
        "place": lambda: place(rng, heldout),
        "who": lambda: person(rng, heldout),
        "guest": lambda: person(rng, heldout),
        "spot": lambda: place(rng, heldout),
        "food": lambda: food(rng, heldout),
        "thing": lambda: thing(rng, heldout),
        "hour": lambda: hour(rng),
    }
    return {slot: make() for slot, make in makers.items() if "{" + slot + "}" in text}
