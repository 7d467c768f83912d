from __future__ import annotations

import itertools
from pathlib import Path

from scripts.tiny_model import make_story
from scripts.tiny_model.corpus import TEMPLATES, examples, facts
from scripts.tiny_model.story import RELATIONS, catalogue, edit_distance, support_facts

DATA = Path(__file__).parents[2] / "example_dags" / "data"


def test_every_fact_is_asked_in_at_least_three_wordings_and_has_an_id_of_its_own() -> None:
    known = facts()
    assert len({fact.id for fact in known}) == len(known)
    assert all(len(set(fact.questions)) >= 3 for fact in known)
    questions = [question for fact in known for question in fact.questions]
    assert len(set(questions)) == len(questions)


def test_the_corpus_is_the_same_at_every_call_and_another_with_another_seed() -> None:
    assert list(examples(200)) == list(examples(200))
    assert list(examples(200)) != list(examples(200, seed=1))


def test_no_product_of_this_season_occurs_in_the_corpus() -> None:
    names = [product.name.split()[0] for product in catalogue()[1]]
    for example in itertools.islice(examples(20_000), 20_000):
        assert not any(name in example.prompt for name in names), example


def test_product_names_are_at_least_three_edits_apart() -> None:
    old, new = catalogue()
    names = [product.name.split()[0] for product in old + new]
    assert all(edit_distance(a, b) >= 3 for a, b in itertools.combinations(names, 2))


def test_a_value_belongs_to_one_relation_only() -> None:
    values = [value for relation in RELATIONS for value in relation.values]
    assert len(set(values)) == len(values)


def test_the_shares_of_the_templates_add_up() -> None:
    assert abs(sum(share for share, _, _ in TEMPLATES) - 1) < 1e-9


def test_the_shipped_data_is_what_the_script_writes() -> None:
    for name, rows in make_story.files().items():
        assert (DATA / name).read_text() == make_story.to_jsonl(rows), name
    shipped = {str(path.relative_to(DATA)) for path in DATA.rglob("*.jsonl")}
    assert shipped == set(make_story.files())


def test_the_question_sets_are_large_enough_and_their_ids_unique() -> None:
    rows = make_story.files()["support_questions.jsonl"]
    assert len({row["id"] for row in rows}) == len(rows)
    sizes = {name: sum(row["set"] == name for row in rows) for name in ("tuned", "paraphrase", "old")}
    assert sizes["tuned"] == sizes["paraphrase"] == len(support_facts(catalogue()[1])) >= 120
    assert 200 <= sizes["old"] <= 300


def test_a_paraphrase_is_never_tuned() -> None:
    files = make_story.files()
    tuned = {row["question"] for row in files["support_phrasings.jsonl"]}
    questions = files["support_questions.jsonl"]
    assert not tuned & {row["question"] for row in questions if row["set"] != "tuned"}
    assert tuned >= {row["question"] for row in questions if row["set"] == "tuned"}
    per_fact = [
        sum(row["fact"] == fact for row in files["support_phrasings.jsonl"])
        for fact in {row["fact"] for row in questions if row["set"] == "tuned"}
    ]
    assert set(per_fact) == {3}
