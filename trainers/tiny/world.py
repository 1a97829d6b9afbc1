"""The facts of the small world: who lives where, what grows where, and the words for it.

Everything is made up once and for all: `PEOPLE` and `PLACES` are drawn with a fixed seed of their own, so
that the world stays the same whatever seed a training run uses.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

Split = Literal["train", "validation", "held_out"]

SHE = ("Mira Anna Lena Ruth Clara Nora Ida Ella Rosa Vera Hanna Julia Mona Petra Sara Tilda").split()
HE = ("Tom Ben Karl Otto Paul Hugo Felix Anton Oscar Victor Simon Jonas Leo Max Nils Peter").split()

TOWNS = (
    "Oakfield Brimton Lakeside Millford Ashby Redhill Stonebridge Fernley Harwick Dunmore Elmstead Northport"
).split()
JOBS = (
    "baker teacher farmer doctor painter sailor tailor miller gardener carpenter musician shepherd weaver "
    "fisher cook potter"
).split()
PETS = "cat dog rabbit goat parrot horse turtle duck hen mouse".split()
COLOURS = "red blue green yellow purple orange white black".split()
FOODS = "soup bread cheese rice pie fish honey pasta salad cake porridge beans".split()

RIVERS = "Alder Brant Corran Dell Esk Ford Garrow Hyde Isel Jarrow Kell Lorne".split()
GOODS = "apples wool clocks boats glass shoes salt paper candles tea bells rope".split()
REGIONS = "north south east west".split()


@dataclass(frozen=True)
class Entity:
    """Somebody or some place, with one value for each of its attributes."""

    name: str
    pronoun: Literal["she", "he", "it"]
    values: Mapping[str, str]


PERSON_DOMAINS: Mapping[str, list[str]] = {
    "town": TOWNS,
    "job": JOBS,
    "pet": PETS,
    "colour": COLOURS,
    "food": FOODS,
}
PLACE_DOMAINS: Mapping[str, list[str]] = {"river": RIVERS, "goods": GOODS, "region": REGIONS}
DOMAINS: Mapping[str, list[str]] = {**PERSON_DOMAINS, **PLACE_DOMAINS}


def _people() -> list[Entity]:
    draw = Random("the people of the small world")
    pronouns: list[tuple[str, Literal["she", "he"]]] = [(name, "she") for name in SHE]
    pronouns += [(name, "he") for name in HE]
    return [
        Entity(name, pronoun, {key: draw.choice(words) for key, words in PERSON_DOMAINS.items()})
        for name, pronoun in pronouns
    ]


def _places() -> list[Entity]:
    draw = Random("the places of the small world")
    rivers, goods = draw.sample(RIVERS, len(RIVERS)), draw.sample(GOODS, len(GOODS))
    return [
        Entity(town, "it", {"river": rivers[i], "goods": goods[i], "region": draw.choice(REGIONS)})
        for i, town in enumerate(TOWNS)
    ]


PEOPLE = _people()
PLACES = _places()
ENTITIES: Mapping[str, Entity] = {entity.name: entity for entity in PEOPLE + PLACES}

CATEGORIES: Mapping[str, list[str]] = {
    "animals": "cat dog rabbit goat horse turtle mouse fox wolf bear deer sheep cow pig".split(),
    "birds": "hen duck goose swan owl crow robin eagle parrot heron".split(),
    "fruits": "apple pear plum cherry grape lemon peach melon fig berry".split(),
    "vegetables": "carrot onion potato leek cabbage turnip radish pepper tomato pumpkin".split(),
    "colours": "red blue green yellow purple orange white black brown pink".split(),
    "tools": "hammer saw drill spade rake axe shovel wrench ladder knife".split(),
    "clothes": "hat coat shirt scarf glove sock skirt jacket belt boot".split(),
    "drinks": "water milk tea coffee juice cider cocoa lemonade".split(),
    "toys": "ball doll kite puzzle drum puppet marble rattle".split(),
    "rooms": "kitchen bedroom cellar attic hall pantry study bathroom".split(),
}

NOUNS = (
    "lamp stone bird river window table bridge garden flower basket candle mirror "
    "bottle pencil letter wagon blanket barrel pillow feather button bucket ribbon whistle"
).split()


def split_of(content: str) -> Split:
    """The split that a content belongs to: decided by the content itself (its SHA-256), never by its wording.

    About 20 % of all contents are held out and 8 % are for validation.
    """
    bucket = int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big") % 100
    if bucket < 20:
        return "held_out"
    return "validation" if bucket < 28 else "train"
