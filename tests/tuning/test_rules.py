"""When a run ends before its plan, what it is worth on held-out rows, and what it says without sending."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trainer_server
from faults import Act, error, reply
from trainer_server import QUICK, TrainerServer, Tune, facts

import airflow_provider_gradient.server as server
from airflow_provider_gradient.api import GradientError, InvalidRequestError, NanLossError
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.datasets import read_rows
from airflow_provider_gradient.tuning import calls as tuning_calls
from airflow_provider_gradient.tuning import fine_tune
from airflow_provider_gradient.validation import generated_score

TOKENIZER = Path(server.__file__).parent / "tiny_model"


class Scores:
    """Gives one score after another, and remembers how often it was asked."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.asked: list[list[dict[str, Any]]] = []

    async def __call__(self, rows: Sequence[Any]) -> float:
        self.asked.append([dict(row) for row in rows])
        return self.scores[len(self.asked) - 1]


def losses(server: TrainerServer, *means: float) -> None:
    """The mean loss of one call after another; their trainings are counted all the same."""
    given: Iterator[float] = iter(means)

    def answer(_: int) -> Act:
        return reply(body={"numberOfTrainableTokens": 10, "sumLoss": 10 * next(given)})

    server.answer = answer


async def test_patience_ends_a_run_whose_loss_no_longer_falls(keyless: TrainerServer, tune: Tune) -> None:
    losses(keyless, 3.0, 2.0, 1.97, 2.5, 1.0, 1.0)
    arguments = {"epochs": 6, "patience": 2, "min_delta": 0.05}
    report = await tune(keyless, facts(2), **arguments)
    assert (report.status, report.stop_reason) == ("stopped", "patience")
    assert [result.mean_loss for result in report.call_results] == pytest.approx([3.0, 2.0, 1.97, 2.5])
    assert [loss is None for loss in report.epoch_losses] == [False] * 4 + [True] * 2
    again = await tune(keyless, facts(2), **arguments)
    assert (again.stop_reason, len(keyless.calls)) == ("patience", 4)
    losses(keyless, 1.0, 1.0)
    loosened = await tune(keyless, facts(2), **(arguments | {"patience": 4}))
    assert (loosened.status, loosened.resumed_calls, len(keyless.calls)) == ("finished", 4, 6)


async def test_a_loss_above_the_limit_ends_the_run_at_once(keyless: TrainerServer, tune: Tune) -> None:
    losses(keyless, 3.0, 9.5, 1.0)
    report = await tune(keyless, facts(6), max_loss=9.0)
    assert (report.status, report.stop_reason, len(keyless.calls)) == ("stopped", "max_loss", 2)


async def test_a_budget_of_tokens_ends_between_two_calls_and_a_larger_one_goes_on(
    keyless: TrainerServer, tune: Tune
) -> None:
    report = await tune(keyless, facts(8), max_tokens=15)
    assert (report.stop_reason, report.trainable_tokens, len(keyless.calls)) == ("max_tokens", 20, 2)
    report = await tune(keyless, facts(8), max_tokens=25)
    assert (report.stop_reason, report.resumed_calls, len(keyless.calls)) == ("max_tokens", 2, 3)
    report = await tune(keyless, facts(8))
    assert (report.status, len(keyless.calls)) == ("finished", 4)
    assert set(keyless.trainings.values()) == {1}


async def test_a_budget_of_time_counts_all_attempts(keyless: TrainerServer, tune: Tune) -> None:
    result = trainer_server.trained()
    keyless.answer = lambda number: Act(wait=0.15, send=result(keyless.calls[number]).send)  # type: ignore[operator]
    report = await tune(keyless, facts(8), max_seconds=0.2)
    made = len(keyless.calls)  # two of four, or one where the machine is busy
    assert report.stop_reason == "max_seconds"
    assert 0 < made < report.calls
    assert (await tune(keyless, facts(8), max_seconds=0.2)).stop_reason == "max_seconds"
    assert len(keyless.calls) == made


async def test_epochs_are_scored_on_held_out_rows_and_the_best_is_named(
    keyless: TrainerServer, tune: Tune
) -> None:
    scores = Scores(0.2, 0.9, 0.8, 0.7)
    report = await tune(keyless, facts(10), epochs=9, validation_share=0.2, validate=scores, patience=2)
    assert [score.score for score in report.epoch_scores] == [0.2, 0.9, 0.8, 0.7]
    assert (report.stop_reason, report.best_epoch, report.best_epoch_kept) == ("patience", 1, False)
    assert "epochs=2" in (report.advice or "")
    assert report.held_out == len(scores.asked[0]) == 2
    sent = {sample["inputs"][0]["value"] for call in keyless.calls for sample in call.json()["samples"]}
    assert len(sent) == 8
    assert not sent & {row["prompt"] for row in scores.asked[0]}


async def test_the_best_epoch_can_be_had_again_by_the_same_plan(keyless: TrainerServer, tune: Tune) -> None:
    arguments = {"validation_share": 0.2, "seed": 4, "journal_path": None}
    await tune(keyless, facts(10), epochs=3, validate=Scores(0.5, 0.6, 0.1), **arguments)
    best = [call.json() for call in keyless.calls[:8]]
    keyless.requests.clear()
    report = await tune(keyless, facts(10), epochs=2, validate=Scores(0.5, 0.6), **arguments)
    assert [call.json() for call in keyless.calls] == best
    assert (report.best_epoch, report.best_epoch_kept, report.advice) == (1, True, None)


async def test_an_epoch_that_was_scored_is_not_asked_again_and_one_that_was_not_is(
    keyless: TrainerServer, tune: Tune
) -> None:
    async def broken(_: Sequence[Any]) -> float:
        raise GradientError("the server is gone")

    arguments = {"epochs": 2, "validation_dataset": facts(12)[10:]}
    with pytest.raises(GradientError, match="is gone"):
        await tune(keyless, facts(4), validate=broken, **arguments)
    assert len(keyless.calls) == 2
    keyless.refuse = lambda number: error(400, "no") if number == 2 else None
    first = Scores(0.1)
    with pytest.raises(GradientError, match="no"):
        await tune(keyless, facts(4), validate=first, **arguments)
    keyless.refuse = lambda _: None
    second = Scores(0.2)
    report = await tune(keyless, facts(4), validate=second, **arguments)
    assert [score.score for score in report.epoch_scores] == [0.1, 0.2]
    assert (len(first.asked), len(second.asked)) == (1, 1)
    assert (await tune(keyless, facts(4), validate=Scores(), **arguments)).epoch_scores == report.epoch_scores


async def test_the_real_server_answers_between_epochs_and_learns_what_is_held_out_in_other_words(
    async_client: Callable[[], AsyncGradientClient], adapter: str, tmp_path: Path
) -> None:
    prompt, completion = "Question: {q}\n\nAnswer:", " {a}"
    colours = ["red", "blue", "green", "black", "white", "pink"]
    rows = [{"q": f"What colour is the Zorp {name}?", "a": name} for name in colours]
    asked = [{"q": f"Which colour is the Zorp {name}?", "a": name} for name in colours]
    async with async_client() as client:
        report = await fine_tune(
            client,
            model_id=adapter,
            samples=rows,
            prompt_template=prompt,
            completion_template=completion,
            epochs=2,
            validation_dataset=asked,
            validate=generated_score(client, model_id=adapter),
            tokenizer=TOKENIZER,
            curve_path=tmp_path / "curve.svg",
        )
        with pytest.raises(GradientError, match="at most 510 are allowed"):
            await fine_tune(
                client, model_id=adapter, samples=[{"inputs": "long " * 600}], tokenizer=TOKENIZER
            )
    assert [score.epoch for score in report.epoch_scores] == [0, 1]
    assert [score.model_version for score in report.epoch_scores] == [1, 2]
    assert all(0 <= score.score <= 1 for score in report.epoch_scores)
    assert report.best_epoch is not None
    assert report.planned_tokens is not None
    assert report.planned_tokens >= report.trainable_tokens - 12
    assert "<svg" in (tmp_path / "curve.svg").read_text()


async def test_held_out_rows_without_an_answer_are_an_error_and_no_low_score(
    keyless: TrainerServer, tune: Tune
) -> None:
    async with AsyncGradientClient(**keyless.credentials, retries=trainer_server.QUICK) as client:
        score = generated_score(client, model_id=trainer_server.MODEL_ID)
        keyless.refuse = lambda number: error(400, "no") if number >= 2 else None
        with pytest.raises(GradientError, match="held-out rows were not answered"):
            await tune(keyless, facts(4), validation_dataset=facts(9)[6:], validate=score)


async def test_an_estimate_sends_nothing_and_counts_what_would_be_sent(
    keyless: TrainerServer, tune: Tune, tmp_path: Path
) -> None:
    report = await tune(keyless, facts(5), epochs=3, estimate=True, validation_share=0.2)
    assert keyless.requests == []
    assert not (tmp_path / "tuning.journal.jsonl").exists()
    assert (report.status, report.samples, report.calls, report.held_out) == ("estimated", 5, 6, 1)
    assert (report.planned_tokens, report.call_results) == (None, [])
    counted = await tune(keyless, facts(5), estimate=True, tokenizer=len, max_sample_tokens=1000)
    assert counted.planned_tokens == sum(len(row["q"] + row["a"]) for row in facts(5))
    assert keyless.requests == []


async def test_samples_to_rehearse_go_into_every_call_and_are_named_by_their_own_rows(
    keyless: TrainerServer, tune: Tune
) -> None:
    old = [{"q": f"old {number}", "a": " fact"} for number in range(3)]
    arguments = {"rehearsal_samples": old, "rehearsal_share": 0.5, "batch_size": 4}
    report = await tune(keyless, facts(6), **arguments)
    sent = [[s["inputs"][0]["value"] for s in call.json()["samples"]] for call in keyless.calls]
    assert [sum(text.startswith("old") for text in texts) for texts in sent] == [2, 2, 2]
    assert {text for texts in sent for text in texts if text.startswith("old")} == {"old 0", "old 1", "old 2"}
    assert (report.samples, report.rehearsal_samples) == (6, 3)
    keyless.refuse = lambda _: error(400, "samples[3] is too long", type="unprocessableContent")
    with pytest.raises(GradientError, match=r"samples\[3\] \(rehearsal_samples: row \d of the inline"):
        await tune(keyless, facts(6), journal_path=None, **arguments)


async def test_a_server_that_stays_busy_longer_than_the_client_waits_is_waited_for(
    keyless: TrainerServer, tune: Tune, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuning_calls, "_BUSY_SECONDS", 60.0)
    monkeypatch.setattr(tuning_calls, "_BUSY_PAUSE", (0.01, 0.02))
    overloaded = reply(503, {"message": "full"}, headers={"Retry-After": "0"})
    keyless.refuse = lambda number: (
        (error(429, "busy") if number % 2 else overloaded) if 1 <= number < 12 else None
    )
    report = await tune(keyless, facts(6))
    assert (report.status, len(keyless.calls)) == ("finished", 14)
    assert set(keyless.trainings.values()) == {1}
    assert "waits 0 s for a busy server" in caplog.text


async def test_a_busy_server_is_asked_once_more_at_the_end_of_the_time_though_the_pause_is_longer(
    keyless: TrainerServer, tune: Tune, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuning_calls, "_BUSY_SECONDS", 1.0)
    monkeypatch.setattr(tuning_calls, "_BUSY_PAUSE", (30.0, 60.0))
    keyless.refuse = lambda number: error(429, "busy") if 1 <= number <= QUICK.attempts else None
    report = await tune(keyless, facts(6))
    assert report.status == "finished"
    assert "waits 1 s for a busy server" in caplog.text


@pytest.mark.parametrize("name", ["curve.svg", "curve.png", "curve.jsonl"])
async def test_the_curve_is_drawn_also_of_a_run_that_diverged(
    keyless: TrainerServer, tune: Tune, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "folder" / name
    keyless.refuse = lambda number: error(400, "loss is NaN", type="nanLoss") if number == 3 else None
    arguments = {"epochs": 2, "validation_dataset": facts(9)[8:], "curve_path": path}
    with pytest.raises(NanLossError):
        await tune(keyless, facts(4), validate=Scores(0.25), **arguments)
    if name.endswith("jsonl"):
        rows = list(read_rows(path))
        assert [row["call"] for row in rows] == [0, 1, 2]
        assert (rows[1]["score"], "score" in rows[0]) == (0.25, False)
        return
    drawn = path.read_bytes()
    assert drawn.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    keyless.refuse = lambda _: None
    report = await tune(keyless, facts(4), validate=Scores(0.5), **arguments)
    assert report.curve_path == str(path)
    assert path.read_bytes() != drawn
    assert json.loads(json.dumps(report.to_dict()))["status"] == "finished"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"curve_path": "curve.pdf"}, r"let curve.pdf end in .svg, .png or .jsonl"),
        ({"patience": 0}, "patience: must be at least 1"),
        ({"min_delta": -1}, "min_delta: must be at least 0"),
        ({"max_loss": 0}, "max_loss: must be above 0"),
        ({"max_tokens": float("nan")}, "max_tokens: must be above 0"),
        ({"validation_share": 0.5}, "give validate together with"),
        ({"validate": Scores()}, "give validate together with"),
        ({"rehearsal_share": 0.5}, "rehearsal_samples and a rehearsal_share"),
        ({"rehearsal_samples": [{"q": "a", "a": "b"}]}, "rehearsal_samples and a rehearsal_share"),
        ({"order": "random"}, "order: one of shuffle"),
        ({"curriculum_column": "q", "order": "as_given"}, "is no number|not both"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_the_first_call(
    keyless: TrainerServer, tune: Tune, arguments: Any, words: str
) -> None:
    with pytest.raises((InvalidRequestError, GradientError), match=words):
        await tune(keyless, facts(3), **arguments)
    assert keyless.requests == []
