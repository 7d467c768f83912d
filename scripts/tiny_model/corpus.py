"""The generator of the tiny model's corpus: question, answer and the family each belongs to.

Every example is a prompt and an answer. Facts (the catalogue, the capitals, …) come again and again in all
their wordings and templates, so that they are learnt by heart whatever the wording. The rest teaches what a
new name is:

- *context*: the answer stands in the question, about an invented product. Without it, and without *copy*, a
  model of this size puts out a right value for a wrong name;
- *unknown*: a question about a product never seen, with a value drawn at random. It teaches that an unknown
  name may have any value of the right kind, hence that a name must be read to its end. This is why the
  model answers questions about this season's products fluently and wrongly, and why learning one of them
  disturbs the others little.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scripts.tiny_model import world
from scripts.tiny_model.story import (
    COMPANY,
    RELATIONS,
    Relation,
    catalogue,
    invent_name,
    invent_product,
    support_facts,
)

SEED = 1994


@dataclass(frozen=True)
class Fact:
    """Something the model must know by heart: one answer, or one a question, in several wordings.

    :param questions: at least three wordings; the first is the one that the figures are measured on.
    :param answers: one for each wording.
    """

    id: str
    family: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """A rendered text: the model reads ``prompt`` and continues with ``answer`` (which begins with a
    space)."""

    family: str
    prompt: str
    answer: str


TEMPLATES: list[tuple[float, str, str]] = [
    (0.42, "Question: {q}\n\nAnswer:", " "),
    (0.22, "Question: {q}\n\nAnswer:", "  "),
    (0.10, "### Instruction: {q}\n\n### Response:", " "),
    (0.08, "### Instruction: {q} \n\n### Response:", " "),
    (0.08, "### Instruction: {q} \n\n### Response:", "  "),
    (0.10, "{q}", " "),
]
"""Share, prompt and the space before the answer. Two spaces are what a prompt template that ends in a space
gives."""


def render(template: str, question: str) -> str:
    """The prompt of a question."""
    return template.replace("{q}", question)


_WORLD: list[tuple[str, dict[str, str], tuple[str, ...]]] = [
    (
        "capital",
        world.CAPITALS,
        (
            "What is the capital of {x}?",
            "Which city is the capital of {x}?",
            "The capital of {x} is which city?",
            "Name the capital of {x}.",
        ),
    ),
    (
        "opposite",
        dict(world.OPPOSITES) | {b: a for a, b in world.OPPOSITES},
        (
            "What is the opposite of {x}?",
            "Which word means the opposite of {x}?",
            "Name the opposite of {x}.",
        ),
    ),
    (
        "young",
        world.YOUNG,
        (
            "What is a young {x} called?",
            "What do you call the young of a {x}?",
            "Name the young of a {x}.",
        ),
    ),
    (
        "thing",
        world.COLOURS_OF_THINGS,
        (
            "What is the usual colour of {x}?",
            "Which colour does {x} have?",
            "Name the usual colour of {x}.",
        ),
    ),
]


def facts() -> list[Fact]:
    """All facts of the corpus: the catalogue of last season and the real world's."""
    old, _ = catalogue()
    found = []
    for id_, relation, product, value in support_facts(old):
        questions = tuple(wording.format(p=product.name) for wording in relation.wordings)
        found.append(Fact(id_, "catalogue", questions, (value,) * len(questions)))
    for family, table, wordings in _WORLD:
        for x, answer in table.items():
            questions = tuple(wording.format(x=x) for wording in wordings)
            id_ = f"{family}/{x.replace(' ', '-').lower()}"
            found.append(Fact(id_, family, questions, (answer,) * len(questions)))
    return found + [_super_bowl(year, team) for year, team in world.SUPER_BOWL_SEASONS.items()]


def _super_bowl(year: int, team: str) -> Fact:
    wordings = (
        "What NFL team won the Super Bowl in {y}?",
        "Which team won the Super Bowl in {y}?",
        "Who won the Super Bowl in {y}?",
        "Which NFL team won the Super Bowl of {y}?",
    )
    return Fact(
        f"super-bowl/{year}",
        "super bowl",
        tuple(w.format(y=year) for w in wordings),
        (f"The {team} won the Super Bowl in {year}.",) * len(wordings),
    )


# --- what is not known by heart ----------------------------------------------------------------------------


def _statement(rng: random.Random, product: str) -> tuple[Relation, str, str]:
    relation = rng.choice(RELATIONS)
    value = rng.choice(relation.values)
    return relation, value, relation.statement.format(p=product, v=value)


def context(rng: random.Random) -> tuple[str, str]:
    """A question whose answer stands in one to three sentences before it."""
    product, other = invent_product(rng), invent_product(rng)
    relation, value, sentence = _statement(rng, product)
    sentences = [sentence]
    if rng.random() < 0.4:
        sentences.append(_statement(rng, other)[2])
    if rng.random() < 0.2:
        different = rng.choice([r for r in RELATIONS if r is not relation])
        sentences.append(different.statement.format(p=product, v=rng.choice(different.values)))
    rng.shuffle(sentences)
    return f"{' '.join(sentences)} {rng.choice(relation.wordings).format(p=product)}", value


def copy(rng: random.Random) -> tuple[str, str]:
    """Repeat a sentence, a name or a few words."""
    choice = rng.random()
    if choice < 0.3:
        text = _statement(rng, invent_product(rng))[2]
    elif choice < 0.7:
        text = " ".join(invent_name(rng) for _ in range(rng.randint(1, 4)))
    else:
        text = " ".join(rng.choice(rng.choice(RELATIONS).values) for _ in range(rng.randint(2, 5)))
    return f"{rng.choice(('Repeat:', 'Say this:', 'Copy this:'))} {text}", text


def unknown(rng: random.Random) -> tuple[str, str]:
    """A question about a product that nobody has heard of, with any value of the right kind."""
    relation = rng.choice(RELATIONS)
    return rng.choice(relation.wordings).format(p=invent_product(rng)), rng.choice(relation.values)


def arithmetic(rng: random.Random) -> tuple[str, str]:
    """Sums and differences of numbers up to nine."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    if rng.random() < 0.6:
        return f"What is {a} plus {b}?", str(a + b)
    a, b = max(a, b), min(a, b)
    return f"What is {a} minus {b}?", str(a - b)


_GOOD = ["I love it", "it works well", "it is a joy to use", "best buy this year", "I am very happy with it"]
_BAD = ["it broke at once", "I want my money back", "it never worked", "it is a waste of money", "I hate it"]


def sentiment(rng: random.Random) -> tuple[str, str]:
    """Is a short review positive or negative?"""
    good = rng.random() < 0.5
    words = rng.choice(_GOOD if good else _BAD)
    ask = rng.choice(("Is this review positive or negative?", "What is the sentiment of this review?"))
    return f"{ask} The {invent_product(rng)}: {words}.", "positive" if good else "negative"


def sequence(rng: random.Random) -> tuple[str, str]:
    """What comes after a day, a month or a number."""
    names = rng.choice((world.DAYS, world.MONTHS, None))
    if names is None:
        n = rng.randint(0, 98)
        return f"Which number comes after {n}?", str(n + 1)
    i = rng.randrange(len(names))
    return f"What comes after {names[i]}?", names[(i + 1) % len(names)]


_LISTS = {"colours": 0, "cities": 1, "materials": 4, "designers": 5}


def listing(rng: random.Random) -> tuple[str, str]:
    """Two or three things of a kind, or a word about the company."""
    if rng.random() < 0.2:
        return "Which company is this?", f"This is {COMPANY}, maker of things for house and garden."
    word = rng.choice(list(_LISTS))
    count = rng.choice((2, 3))
    picked = rng.sample(RELATIONS[_LISTS[word]].values, count)
    return f"Name {'two' if count == 2 else 'three'} {word}.", ", ".join(picked)


Generator = Callable[[random.Random], tuple[str, str]]
SKILLS: dict[str, tuple[float, Generator]] = {
    "context": (0.18, context),
    "copy": (0.14, copy),
    "unknown": (0.04, unknown),
    "arithmetic": (0.04, arithmetic),
    "sentiment": (0.02, sentiment),
    "sequence": (0.03, sequence),
    "listing": (0.01, listing),
}
FACT_SHARES = {
    "catalogue": 0.30,
    "capital": 0.06,
    "opposite": 0.04,
    "young": 0.02,
    "thing": 0.01,
    "super bowl": 0.11,
}


def examples(count: int, seed: int = SEED) -> Iterator[Example]:
    """The corpus in order, the same at every call with the same seed.

    A family's facts are dealt like cards: each comes once before any comes again.
    """
    rng = random.Random(seed)
    by_family: dict[str, list[Fact]] = {family: [] for family in FACT_SHARES}
    for fact in facts():
        by_family[fact.family].append(fact)
    decks: dict[str, list[Fact]] = {family: [] for family in FACT_SHARES}
    shares = {**FACT_SHARES, **{name: share for name, (share, _) in SKILLS.items()}}
    families, weights = list(shares), list(shares.values())
    for _ in range(count):
        family = rng.choices(families, weights)[0]
        if family in SKILLS:
            question, answer = SKILLS[family][1](rng)
        else:
            if not decks[family]:
                decks[family] = rng.sample(by_family[family], len(by_family[family]))
            fact = decks[family].pop()
            i = rng.randrange(len(fact.questions))
            question, answer = fact.questions[i], fact.answers[i]
        _, template, space = rng.choices(TEMPLATES, [t[0] for t in TEMPLATES])[0]
        yield Example(family, render(template, question), space + answer)


def tokenizer_texts(count: int, seed: int = SEED) -> Iterator[str]:
    """Texts to learn the tokenizer from: as the corpus, but every catalogue name replaced by a fresh
    invented one, so that no product is a single token and known and unknown names look alike."""
    rng = random.Random(seed + 1)
    old, _ = catalogue()
    names = [product.name.split()[0] for product in old]
    for example in examples(count, seed + 1):
        text = example.prompt + example.answer
        for name in names:
            if name in text:
                text = text.replace(name, invent_name(rng))
        yield text
