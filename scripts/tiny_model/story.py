"""The story of the demo: the catalogue of Quillmarsh, an invented maker of things for house and garden.

The tiny model knows last season's catalogue by heart. This season's products came after it was trained:
asked about one of them it answers fluently and wrongly, with a colour, a city, a price of the right kind. A
support assistant must learn them without forgetting the rest, and that is what the improvement loop shows.

Every name is made of random syllables and every value drawn at random from a closed set, by fixed seeds, so
the catalogue follows from this file alone. No two names are closer than three edits, so that no question
can be mistaken for another's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

COMPANY = "Quillmarsh"
OLD_PRODUCTS = 40
NEW_PRODUCTS = 16

KINDS = [
    "lantern",
    "kettle",
    "radio",
    "clock",
    "lamp",
    "fan",
    "heater",
    "torch",
    "charger",
    "scale",
    "camera",
    "speaker",
    "doorbell",
    "projector",
    "mixer",
    "toaster",
]


@dataclass(frozen=True)
class Relation:
    """One thing that can be asked about a product.

    :param phrasings: three questions to tune on; ``{p}`` is the product.
    :param paraphrase: the same question in a wording that is never tuned.
    :param extra: one more wording that only the base model's corpus has.
    :param statement: the fact as a sentence, for contexts and for copying; ``{v}`` is the value.
    """

    name: str
    phrasings: tuple[str, str, str]
    paraphrase: str
    extra: str
    statement: str
    values: tuple[str, ...]

    @property
    def wordings(self) -> tuple[str, ...]:
        """Every question the base model has met."""
        return (*self.phrasings, self.paraphrase, self.extra)


RELATIONS = [
    Relation(
        "colour",
        ("What colour is the {p}?", "Which colour does the {p} come in?", "What is the colour of the {p}?"),
        "The {p} is sold in which colour?",
        "Tell me the colour of the {p}.",
        "The {p} is {v}.",
        (
            "amber", "teal", "olive", "crimson", "ivory", "indigo", "coral", "silver",
            "violet", "turquoise", "beige", "maroon", "lilac", "copper", "navy", "mustard",
        ),
    ),
    Relation(
        "city",
        ("Where is the {p} made?", "In which city is the {p} built?", "What city does the {p} come from?"),
        "The {p} is made in which city?",
        "Name the city that builds the {p}.",
        "The {p} is made in {v}.",
        (
            "Porto", "Turin", "Leeds", "Graz", "Bergen", "Lyon", "Malmo", "Bilbao",
            "Ghent", "Tampere", "Gdansk", "Basel", "Patras", "Cork", "Split", "Aarhus",
        ),
    ),
    Relation(
        "warranty",
        (
            "How long is the warranty on the {p}?",
            "How many years of warranty does the {p} have?",
            "What warranty does the {p} come with?",
        ),
        "For how long is the {p} under warranty?",
        "Tell me the warranty of the {p}.",
        "The {p} has a warranty of {v}.",
        (
            "one year", "two years", "three years", "four years", "five years", "six years", "seven years",
            "eight years", "nine years", "ten years", "twelve years", "fifteen years", "twenty years",
        ),
    ),
    Relation(
        "power",
        ("What powers the {p}?", "How is the {p} powered?", "What does the {p} run on?"),
        "What kind of power does the {p} need?",
        "Tell me what the {p} runs on.",
        "The {p} runs on {v}.",
        (
            "mains power", "solar cells", "a hand crank", "a gas cartridge", "a spring", "a dynamo",
            "AA batteries", "a coin cell", "a lithium pack", "USB power", "a fuel cell", "a car socket",
        ),
    ),
    Relation(
        "material",
        (
            "What is the {p} made of?",
            "Which material is the {p} made from?",
            "What material is used for the {p}?",
        ),
        "The {p} is made out of which material?",
        "Name the material of the {p}.",
        "The {p} is made of {v}.",
        (
            "bamboo", "steel", "wicker", "glass", "ceramic", "walnut", "brass", "felt",
            "leather", "granite", "oak", "titanium", "rubber", "linen", "zinc", "marble",
        ),
    ),
    Relation(
        "designer",
        ("Who designed the {p}?", "Who is the designer of the {p}?", "Whose design is the {p}?"),
        "Which designer drew the {p}?",
        "Name the designer of the {p}.",
        "The {p} was designed by {v}.",
        (
            "Ines", "Tomas", "Greta", "Oskar", "Leila", "Marek", "Sunniva", "Pavel",
            "Adele", "Bruno", "Noor", "Felix", "Hanna", "Iker", "Wanda", "Jonas",
        ),
    ),
    Relation(
        "box",
        (
            "What comes in the box with the {p}?",
            "What is packed with the {p}?",
            "Which extra is in the box of the {p}?",
        ),
        "What do I get in the box with the {p}?",
        "Tell me what is packed with the {p}.",
        "The {p} is packed with {v}.",
        (
            "a strap", "a spare fuse", "a brush", "a pouch", "a wall hook", "a cable", "a stand", "a cloth",
            "a key", "a manual", "a tray", "a clip", "a filter", "a lens cap",
        ),
    ),
    Relation(
        "price",
        ("How much is the {p}?", "What does the {p} cost?", "What is the price of the {p}?"),
        "How much do I pay for the {p}?",
        "Tell me the price of the {p}.",
        "The {p} costs {v}.",
        tuple(f"{n} euros" for n in (19, 24, 28, 35, 37, 42, 46, 51, 58, 63, 64, 72, 76, 80, 89, 95)),
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Product:
    """A product: its full name, such as ``Tavrin lantern``, and the value of each relation by name."""

    name: str
    values: dict[str, str]


_ONSETS = [
    "b",
    "br",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
]
_VOWELS = ["a", "e", "i", "o", "u"]
_CODAS = ["l", "m", "n", "r", "s", "x", "nd", "ck"]


def invent_name(rng: random.Random, syllables: int | None = None) -> str:
    """A capitalised word of two or three random syllables that means nothing."""
    count = syllables or rng.choice((2, 2, 3))
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count)]
    if rng.random() < 0.3:
        parts[0] += rng.choice(_CODAS[:6])
    if rng.random() < 0.8:
        parts[-1] += rng.choice(_CODAS)
    return "".join(parts).capitalize()


def invent_product(rng: random.Random) -> str:
    """An invented name and a kind of thing, such as ``Tavrin lantern``."""
    return f"{invent_name(rng)} {rng.choice(KINDS)}"


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements between two words."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def catalogue() -> tuple[list[Product], list[Product]]:
    """Last season's products and this season's, the same at every call."""
    rng = random.Random(20260)
    names: list[str] = []
    while len(names) < OLD_PRODUCTS + NEW_PRODUCTS:
        name = invent_name(rng, 2 + len(names) % 2)
        if 5 <= len(name) <= 9 and all(edit_distance(name, other) >= 3 for other in names):
            names.append(name)
    products = [
        Product(f"{name} {KINDS[i % len(KINDS)]}", {r.name: _value(rng, r) for r in RELATIONS})
        for i, name in enumerate(names)
    ]
    return products[:OLD_PRODUCTS], products[OLD_PRODUCTS:]


def _value(rng: random.Random, relation: Relation) -> str:
    return rng.choice(relation.values)


def support_facts(products: Sequence[Product]) -> list[tuple[str, Relation, Product, str]]:
    """``(fact id, relation, product, value)`` of every fact about the products, in order."""
    return [
        (f"{p.name.replace(' ', '-').lower()}/{r.name}", r, p, p.values[r.name])
        for p in products
        for r in RELATIONS
    ]
