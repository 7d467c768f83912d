"""The metrics' values are those of the reference implementations."""

from __future__ import annotations

import collections
import random
import re
import string
import unicodedata
from typing import Any

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import confusion_matrix, f1_score
from texts import pairs, rows

from airflow_provider_gradient.evaluation import EvaluationError, evaluate, read_metrics
from airflow_provider_gradient.evaluation.metrics import Example, tokens

PAIRS = pairs(700, seed=1)


def scores(metric: str | dict[str, Any], given: list[tuple[str, Any]]) -> list[float]:
    found = read_metrics([metric])[0]
    return [found.measure(Example(output, reference, {}))[0] for output, reference in given]


def squad_tokens(text: str) -> list[str]:
    """Lower case, no punctuation, no articles, white space fixed: SQuAD's steps, in their order."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text, flags=re.UNICODE).split()


def squad_f1(reference: str, output: str) -> float:
    """Of SQuAD's script of version 2.0."""
    gold, predicted = squad_tokens(reference), squad_tokens(output)
    same = sum((collections.Counter(gold) & collections.Counter(predicted)).values())
    if not gold or not predicted:
        return float(gold == predicted)
    if not same:
        return 0.0
    precision, recall = same / len(predicted), same / len(gold)
    return 2 * precision * recall / (precision + recall)


ORDINARY = """
Denver Broncos; the Denver Broncos; Carolina Panthers; Levi's Stadium; Santa Clara, California; gold;
"golden anniversary"; February 7, 2016; American Football Conference; John Elway; Von Miller; 24\u201310;
2015; Cam Newton; 4; linebacker; $1.2 billion; US$5 million; 1,500; a third; an hour; the 15th century;
1980s; 1990s; World War II; U.S.; U.S.A.; Saint-Étienne; O'Brien; AT&T; R&D; Johnson & Johnson; x-ray;
twenty-one; F-16; No. 1; New York City; Dr. King; 10 a.m.; 3 p.m.; e-mail; e.g. gold; #1; Who?; Yes!;
(none); [sic]; rock 'n' roll; 'twas; "The Wall"; COVID-19; 20th Century Fox; M*A*S*H; user_name; N/A;
S.O.S.; Ph.D.; St. Paul's; it's; dogs'; an elm; well-being; 50 percent; vis-à-vis
"""


def test_ordinary_answers_have_the_values_of_squads_script() -> None:
    answers = [answer.strip() for answer in ORDINARY.replace("\n", " ").split(";")]
    answers = [answer for answer in answers if squad_tokens(answer)]
    assert len(answers) > 60
    given = [(one, other) for one in answers for other in answers]
    given += [(f"It was the {one}, I think.", one) for one in answers]
    given += [(one.upper(), f" {one}.") for one in answers]
    exact = [float(" ".join(squad_tokens(o)) == " ".join(squad_tokens(r))) for o, r in given]
    assert scores("exact_match", given) == exact
    f1 = [squad_f1(reference, output) for output, reference in given]
    assert scores("token_f1", given) == pytest.approx(f1, abs=1e-12)


def is_kept(text: str) -> bool:
    """Whether SQuAD's steps keep what the answer is: no percent sign behind a number, no letter A."""
    return not re.search(r"\d ?%|\ba\W*$", text.lower())


def test_exact_match_and_f1_are_those_of_squads_script() -> None:
    given = [tuple(unicodedata.normalize("NFC", text) for text in pair) for pair in PAIRS]
    given = [pair for pair in given if all(map(is_kept, pair))]
    assert len(given) > 0.9 * len(PAIRS)
    exact = [float(" ".join(squad_tokens(o)) == " ".join(squad_tokens(r))) for o, r in given]
    assert scores("exact_match", given) == exact
    assert 0 < sum(exact) < len(exact)
    f1 = [squad_f1(reference, output) for output, reference in given]
    assert scores("token_f1", given) == pytest.approx(f1, abs=1e-12)


class Tokens:
    """This package's words, for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


@pytest.mark.parametrize("kind", ["1", "2", "l"])
def test_rouge_is_that_of_rouge_score(kind: str) -> None:
    name = f"rouge{kind.upper()}"
    english = pairs(300, seed=2, languages=("english",))
    for given, scorer in ((english, RougeScorer([name])), (PAIRS, RougeScorer([name], tokenizer=Tokens()))):
        expected = [scorer.score(reference, output)[name].fmeasure for output, reference in given]
        assert scores(f"rouge_{kind}", given) == pytest.approx(expected, abs=1e-12)
        assert len(set(expected)) > 20


def test_rouge_of_several_references_is_that_of_rouge_score() -> None:
    given = [(output, [reference, PAIRS[0][1], output[:20]]) for output, reference in PAIRS[:200]]
    scorer = RougeScorer(["rougeL"], tokenizer=Tokens())
    expected = [scorer.score_multi(references, output)["rougeL"].fmeasure for output, references in given]
    assert scores("rouge_l", given) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("tokenize", ["13a", "intl", "char", "zh"])
def test_bleu_is_that_of_sacrebleu_over_all_rows_and_a_row(tokenize: str) -> None:
    given = [tuple(unicodedata.normalize("NFC", text) for text in pair) for pair in PAIRS]
    outputs, references = map(list, zip(*given, strict=True))
    metric = {"metric": "bleu", "tokenize": tokenize}
    sentence = BLEU(tokenize=tokenize, effective_order=True)
    expected = [sentence.sentence_score(output, [reference]).score / 100 for output, reference in given]
    assert scores(metric, given) == pytest.approx(expected, abs=1e-12)
    report = evaluate(rows(given), reference_column="answer", metrics=[metric], resamples=100)
    corpus = BLEU(tokenize=tokenize).corpus_score(outputs, [references]).score
    assert report.metrics["bleu"].value == pytest.approx(corpus / 100, abs=1e-12)


SHORT = [("Paris", "Paris"), ("San Francisco 49ers", "San Francisco 49ers")]


def test_a_score_that_even_perfect_outputs_would_not_reach_is_an_error_that_names_another() -> None:
    for metric, given, reason in (
        ("bleu", SHORT, "no reference has 4 tokens"),
        ("bleu", [("你好世界",) * 2], "tokenize zh or char"),
        ("rouge_2", SHORT[:1], "no reference has two words"),
        ("rouge_1", [("+", "+")], "no reference has a word"),
        ("rouge_l", [("+", "+")], "no reference has a word"),
    ):
        with pytest.raises(EvaluationError, match=f"^{metric}: .*{reason}") as raised:
            evaluate(rows(given), reference_column="answer", metrics=[metric])
        assert "use chrf" in str(raised.value)
    with pytest.raises(EvaluationError, match=r"^chrf: every reference is empty"):
        evaluate(rows([("", "")]), reference_column="answer", metrics=["chrf"])
    chinese = {"metric": "bleu", "tokenize": "zh"}
    report = evaluate(rows([("你好世界",) * 2]), reference_column="answer", metrics=[chinese, "chrf"])
    assert [value.value for value in report.metrics.values()] == pytest.approx([1.0, 1.0])


def test_a_slice_of_short_rows_has_the_bleu_of_the_orders_that_it_has() -> None:
    long = "one two three four five"
    given = [
        *({"output": output, "answer": answer, "kind": "short"} for output, answer in SHORT),
        {"output": long, "answer": long, "kind": "long"},
        {"output": "one two", "answer": long, "kind": "cut"},
    ]
    report = evaluate(given, reference_column="answer", metrics=["bleu"], slice_columns=["kind"])
    found = {kind: metrics["bleu"].value for kind, metrics in report.slices["kind"].items()}
    assert found == pytest.approx({"short": 1.0, "long": 1.0, "cut": 0.0})


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_bleu_of_few_short_rows_is_smoothed_as_sacrebleu_does(count: int) -> None:
    for seed in range(20):
        draw = random.Random(seed)
        given = [
            (" ".join(draw.choices("abcd", k=draw.randrange(6))), " ".join(draw.choices("abcd", k=5)))
            for _ in range(count)
        ]
        report = evaluate(rows(given), reference_column="answer", metrics=["bleu"], resamples=100)
        outputs, references = map(list, zip(*given, strict=True))
        corpus = sacrebleu.corpus_bleu(outputs, [references]).score
        assert report.metrics["bleu"].value == pytest.approx(corpus / 100, abs=1e-12)


def test_chrf_is_that_of_sacrebleu_over_all_rows_and_a_row() -> None:
    given = [tuple(unicodedata.normalize("NFC", text) for text in pair) for pair in PAIRS]
    expected = [CHRF().sentence_score(output, [reference]).score / 100 for output, reference in given]
    assert scores("chrf", given) == pytest.approx(expected, abs=1e-12)
    outputs, references = map(list, zip(*given, strict=True))
    others = references[1:] + references[:1]
    report = evaluate(rows(given), reference_column="answer", metrics=["chrf"], resamples=100)
    corpus = CHRF().corpus_score(outputs, [references]).score
    assert report.metrics["chrf"].value == pytest.approx(corpus / 100, abs=1e-12)
    several = [(output, [one, two]) for output, one, two in zip(outputs, references, others, strict=True)]
    report = evaluate(rows(several), reference_column="answer", metrics=["chrf", "bleu"], resamples=100)
    for name, metric in (("chrf", CHRF()), ("bleu", BLEU())):
        corpus = metric.corpus_score(outputs, [references, others]).score
        assert report.metrics[name].value == pytest.approx(corpus / 100, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_macro_f1_and_the_confusion_table_are_those_of_scikit_learn(seed: int) -> None:
    draw = random.Random(seed)
    choices = ["yes", "no", "może być", "東京", "never"]
    right = [draw.choice(choices[:-1]) for _ in range(200)]
    made = [choice if draw.random() < 0.6 else draw.choice([*choices, "something"]) for choice in right]
    metrics = [{"metric": name, "choices": choices} for name in ("choice_accuracy", "macro_f1")]
    given = rows([(f" {choice.upper()}. ", answer) for choice, answer in zip(made, right, strict=True)])
    report = evaluate(given, reference_column="answer", metrics=metrics)
    labels = sorted(set(right))
    expected = f1_score(right, made, labels=labels, average="macro", zero_division=0)
    assert report.metrics["macro_f1"].value == pytest.approx(expected, abs=1e-12)
    accuracy = np.mean([a == b for a, b in zip(right, made, strict=True)])
    assert report.metrics["choice_accuracy"].value == pytest.approx(accuracy, abs=1e-12)
    assert report.confusion is not None
    names = [*choices, "(none of them)"]
    made = [choice if choice in choices else "(none of them)" for choice in made]
    table = confusion_matrix(right, made, labels=names)
    assert [[report.confusion.get(r, {}).get(m, 0) for m in names] for r in names] == table.tolist()


def test_edit_similarity_is_that_of_the_textbooks_table() -> None:
    def distance(one: str, other: str) -> int:
        line = list(range(len(other) + 1))
        for row, left in enumerate(one, 1):
            before, line[0] = line[0], row
            for column, right in enumerate(other, 1):
                before, line[column] = (
                    line[column],
                    min(line[column] + 1, line[column - 1] + 1, before + (left != right)),
                )
        return line[-1]

    given = [tuple(unicodedata.normalize("NFC", text[:40]) for text in pair) for pair in PAIRS[:200]]
    expected = [1 - distance(o, r) / max(len(o), len(r)) if o or r else 1.0 for o, r in given]
    assert scores("edit_similarity", given) == pytest.approx(expected, abs=1e-12)


def test_closeness_is_that_of_numpy() -> None:
    draw = random.Random(3)
    given = [(value + draw.gauss(0, 2), value) for value in (draw.uniform(-50, 50) for _ in range(300))]
    metric = {"metric": "numeric_closeness", "absolute": 0.5, "relative": 0.05}
    expected = [float(np.isclose(output, wanted, atol=0.5, rtol=0.05)) for output, wanted in given]
    assert scores(metric, [(f"It is {output!r}", wanted) for output, wanted in given]) == expected
    assert 0 < sum(expected) < 300
