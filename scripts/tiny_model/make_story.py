"""Write the example DAGs' data: what customers ask the support assistant of Quillmarsh.

``support_questions.jsonl``, one question a line (``id, set, question, answer, fact``):

- ``tuned``: this season's products, which the base model doesn't know; the loop tunes on these facts;
- ``paraphrase``: the same facts in a wording that is never tuned;
- ``old``: last season's products and facts of the world, known before. No sample ever rehearses them, so they
  show what tuning does to the rest of the model.

``support_phrasings.jsonl``: every tuned fact in three wordings (``id, fact, question, answer``), to tune on.

``daily/<day>.jsonl``: a few questions a day (``id, question``) for the scheduled completions.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from scripts.tiny_model.corpus import Fact, facts
from scripts.tiny_model.story import catalogue, support_facts

OUTPUT = Path(__file__).parents[2] / "example_dags" / "data"
OLD_FACTS = {"catalogue": 200, "capital": 25, "super bowl": 20, "opposite": 15}
DAYS = ("2026-11-01", "2026-11-02", "2026-11-03")
QUESTIONS_A_DAY = 6
SEED = 7

Row = dict[str, str]


def tuned_and_paraphrases() -> list[Row]:
    """Two rows for each fact of this season's catalogue."""
    _, new = catalogue()
    rows = []
    for fact, relation, product, value in support_facts(new):
        for set_, wording in (("tuned", relation.phrasings[0]), ("paraphrase", relation.paraphrase)):
            question = wording.format(p=product.name)
            rows.append(_row(f"{set_}/{fact}", set_, question, value, fact))
    return sorted(rows, key=lambda row: row["set"], reverse=True)


def old_facts() -> list[Row]:
    """Facts that the base model knows, each in one of the wordings it knows them in."""
    rng = random.Random(SEED)
    known: dict[str, list[Fact]] = {family: [] for family in OLD_FACTS}
    for fact in facts():
        if fact.family in known:
            known[fact.family].append(fact)
    rows = []
    for family, count in OLD_FACTS.items():
        for fact in rng.sample(known[family], count):
            i = rng.randrange(len(fact.questions))
            rows.append(_row(f"old/{fact.id}", "old", fact.questions[i], fact.answers[i], fact.id))
    return rows


def phrasings() -> list[Row]:
    """Three rows for each fact of this season's catalogue."""
    _, new = catalogue()
    return [
        {"id": f"{fact}/{n}", "fact": fact, "question": wording.format(p=product.name), "answer": value}
        for fact, relation, product, value in support_facts(new)
        for n, wording in enumerate(relation.phrasings, 1)
    ]


def daily(day: str) -> list[dict[str, str]]:
    """A day's questions: some about new products, some about old ones."""
    rng = random.Random(f"{SEED} {day}")
    old, new = catalogue()
    rows = []
    for n in range(1, QUESTIONS_A_DAY + 1):
        _, relation, product, _ = rng.choice(support_facts(new if n % 2 else old))
        rows.append({"id": f"{day}/{n}", "question": relation.extra.format(p=product.name)})
    return rows


def files() -> dict[str, list[Row]]:
    """Everything this script writes: rows by path below the data folder."""
    days = {f"daily/{day}.jsonl": daily(day) for day in DAYS}
    questions = tuned_and_paraphrases() + old_facts()
    return {"support_questions.jsonl": questions, "support_phrasings.jsonl": phrasings(), **days}


def to_jsonl(rows: Iterable[Mapping[str, str]]) -> str:
    """A JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _row(id_: str, set_: str, question: str, answer: str, fact: str) -> Row:
    return {"id": id_, "set": set_, "question": question, "answer": answer, "fact": fact}


def main() -> None:
    """Write all files below ``--output``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    for name, rows in files().items():
        path = options.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_jsonl(rows))
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
