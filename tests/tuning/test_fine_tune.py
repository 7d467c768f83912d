"""Samples in, a tuned adapter out: what is trained, how often, and what a second run does."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import ACCESS_TOKEN, Act, error, reply
from hypothesis import given
from hypothesis import strategies as st
from trainer_server import TrainerServer, Tune, facts
from upath import UPath

from airflow_provider_gradient.api import (
    AuthenticationError,
    GradientConnectionError,
    InvalidRequestError,
    InvalidResponseError,
    NanLossError,
    RateLimitError,
    UnprocessableContentError,
)
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.datasets import AppendLog, JournalError, dump_row, sealed, unsealed
from airflow_provider_gradient.tuning import (
    AmbiguousCallError,
    CallResult,
    PlannedCall,
    SampleError,
    TuningProgress,
    TuningReport,
    fine_tune,
)
from airflow_provider_gradient.tuning.journal import TuningJournal


async def test_the_real_server_learns_and_the_report_has_its_curve(
    async_client: Callable[[], AsyncGradientClient], adapter: str, tmp_path: Path
) -> None:
    seen: list[TuningProgress] = []
    async with async_client() as client:
        report = await fine_tune(
            client,
            model_id=adapter,
            samples=facts(3),
            prompt_template="{q}?",
            completion_template="{a}",
            epochs=2,
            batch_size=2,
            seed=1,
            journal_path=tmp_path / "journal.jsonl",
            on_progress=seen.append,
        )
        assert client.honours_idempotency_keys
    assert (report.samples, report.epochs, report.calls, report.resumed_calls) == (3, 2, 4, 0)
    assert [(result.call, result.epoch) for result in report.call_results] == [
        *((0, 0), (1, 0), (2, 1), (3, 1))
    ]
    first, second = report.epoch_losses
    assert first is not None
    assert second is not None
    assert second < first
    assert report.trainable_tokens == sum(result.tokens for result in report.call_results) > 0
    assert [(progress.call, progress.calls) for progress in seen] == [(call, 4) for call in range(4)]
    assert TuningReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


async def test_a_call_holds_the_samples_of_its_plan(keyless: TrainerServer, tune: Tune) -> None:
    await tune(keyless, facts(3), batch_size=3, seed=5)
    sent = keyless.calls[0].json()["samples"]
    assert sorted(sample["inputs"][1]["value"] for sample in sent) == [" answer 0", " answer 1", " answer 2"]
    assert all(sample["inputs"][0]["trainable"] is False for sample in sent)


async def test_bad_samples_are_refused_before_the_first_call(keyless: TrainerServer, tune: Tune) -> None:
    samples = [{"inputs": "a"}, {"inputs": "a", "response": "b"}]
    with pytest.raises(SampleError, match="row 1 of the inline dataset: unknown key 'response'"):
        await tune(keyless, samples, prompt_template=None, completion_template=None)
    with pytest.raises(InvalidRequestError, match="on_ambiguous"):
        await tune(keyless, facts(1), on_ambiguous="guess")
    assert keyless.calls == []


async def test_a_finished_run_is_reported_again_and_nothing_is_sent(
    keyless: TrainerServer, tune: Tune
) -> None:
    first = await tune(keyless, facts(4))
    second = await tune(keyless, facts(4))
    assert len(keyless.calls) == 2
    assert second.resumed_calls == 2
    assert second.call_results == first.call_results


async def test_without_a_journal_every_run_trains(keyed: TrainerServer, tune: Tune) -> None:
    for _ in range(2):
        await tune(keyed, facts(2), journal_path=None)
    assert list(keyed.trainings.values()) == [2]


async def test_with_an_identity_a_lost_journal_does_no_harm(
    keyed: TrainerServer, tune: Tune, tmp_path: Path
) -> None:
    for _ in range(2):
        await tune(keyed, facts(4), identity="dag/task/run")
        (tmp_path / "tuning.journal.jsonl").unlink()
    assert list(keyed.trainings.values()) == [1, 1]
    await tune(keyed, facts(4), identity="dag/task/next run")
    assert list(keyed.trainings.values()) == [2, 2]


async def test_other_samples_begin_a_new_run_and_that_is_logged(
    keyless: TrainerServer, tune: Tune, caplog: pytest.LogCaptureFixture
) -> None:
    await tune(keyless, facts(2))
    with caplog.at_level(logging.WARNING):
        report = await tune(keyless, facts(4))
    assert report.resumed_calls == 0
    assert "the run starts anew" in caplog.text


async def test_a_server_that_honours_keys_trains_a_cut_call_once(keyed: TrainerServer, tune: Tune) -> None:
    keyed.cut_answer(1)
    report = await tune(keyed, facts(6))
    assert set(keyed.trainings.values()) == {1}
    assert len(keyed.trainings) == 3
    assert len(keyed.calls) == 4
    assert len(report.call_results) == 3


async def test_the_very_first_call_is_sent_again_once_the_server_says_that_keys_count(
    keyed: TrainerServer, tune: Tune
) -> None:
    keyed.cut_answer(0)
    report = await tune(keyed, facts(4))
    assert list(keyed.trainings.values()) == [1, 1]
    assert len(keyed.calls) == 3
    assert len(report.call_results) == 2


async def test_a_call_left_open_by_an_earlier_run_is_sent_again_with_its_key(
    keyed: TrainerServer, tune: Tune
) -> None:
    keyed.answer = lambda number: Act(close=True) if number >= 1 else None
    with pytest.raises(GradientConnectionError):
        await tune(keyed, facts(6))
    keyed.answer = lambda _: None
    report = await tune(keyed, facts(6))
    assert report.resumed_calls == 1
    assert set(keyed.trainings.values()) == {1}
    assert len(keyed.trainings) == 3


async def test_without_keys_a_cut_call_fails_the_run_and_the_next_until_the_user_decides(
    keyless: TrainerServer, tune: Tune
) -> None:
    keyless.cut_answer(1)
    for _ in range(2):
        with pytest.raises(AmbiguousCallError, match=r"call 2 of 3 \(epoch 1\) was sent and its answer"):
            await tune(keyless, facts(6))
    assert len(keyless.calls) == 2


async def test_a_cut_call_may_be_skipped(keyless: TrainerServer, tune: Tune) -> None:
    keyless.cut_answer(1)
    report = await tune(keyless, facts(6), on_ambiguous="skip")
    assert report.skipped_calls == [1]
    assert [result.call for result in report.call_results] == [0, 2]
    assert set(keyless.trainings.values()) == {1}
    again = await tune(keyless, facts(6))
    assert (again.resumed_calls, again.skipped_calls) == (3, [1])


async def test_a_cut_call_may_be_sent_again(keyless: TrainerServer, tune: Tune) -> None:
    keyless.cut_answer(1)
    report = await tune(keyless, facts(6), on_ambiguous="resend")
    assert [result.call for result in report.call_results] == [0, 1, 2]
    assert sorted(keyless.trainings.values()) == [1, 1, 2]


@pytest.mark.parametrize(("on_ambiguous", "trainings"), [("skip", [1, 1, 1]), ("resend", [1, 1, 2])])
async def test_a_later_run_may_skip_or_send_again_what_an_earlier_one_left_open(
    keyless: TrainerServer, tune: Tune, on_ambiguous: str, trainings: list[int]
) -> None:
    keyless.cut_answer(1)
    with pytest.raises(AmbiguousCallError):
        await tune(keyless, facts(6))
    report = await tune(keyless, facts(6), on_ambiguous=on_ambiguous)
    assert report.resumed_calls == 1
    assert sorted(keyless.trainings.values()) == trainings


async def test_sending_again_has_an_end(keyless: TrainerServer, tune: Tune) -> None:
    keyless.answer = lambda _: Act(close=True)
    with pytest.raises(GradientConnectionError):
        await tune(keyless, facts(2), on_ambiguous="resend")
    assert len(keyless.calls) == 4


async def test_a_busy_server_is_waited_for(keyless: TrainerServer, tune: Tune) -> None:
    busy = {1: error(429, "busy", headers={"Retry-After": "0"}), 2: reply(503, headers={"Retry-After": "0"})}
    keyless.refuse = busy.get
    report = await tune(keyless, facts(6))
    assert len(report.call_results) == 3
    assert set(keyless.trainings.values()) == {1}


async def test_a_call_that_was_refused_to_the_end_is_not_in_doubt(keyless: TrainerServer, tune: Tune) -> None:
    keyless.refuse = lambda number: error(429, "busy") if number >= 1 else None
    with pytest.raises(RateLimitError, match=r"call 2 of 3 \(epoch 1\): busy"):
        await tune(keyless, facts(6))
    keyless.refuse = lambda _: None
    report = await tune(keyless, facts(6))
    assert report.resumed_calls == 1
    assert set(keyless.trainings.values()) == {1}


async def test_a_diverged_call_stops_the_run_and_says_what_to_do(keyless: TrainerServer, tune: Tune) -> None:
    keyless.refuse = lambda number: error(400, "loss is NaN", type="nanLoss") if number == 2 else None
    with pytest.raises(NanLossError) as raised:
        await tune(keyless, facts(6))
    assert "call 3 of 3 (epoch 1): loss is NaN. The training diverged; 2 calls before it are kept" in str(
        raised.value
    )
    assert "Lower the learning rate" in str(raised.value)


async def test_a_call_of_which_the_server_trained_nothing_is_an_error(
    keyless: TrainerServer, tune: Tune
) -> None:
    nothing = reply(body={"numberOfTrainableTokens": 0, "sumLoss": 0.0})
    keyless.answer = lambda number: nothing if number == 1 else None
    with pytest.raises(InvalidResponseError, match=r"call 2 of 3 \(epoch 1\): .* trained 0 tokens of it"):
        await tune(keyless, facts(6))
    keyless.answer = lambda _: None
    report = await tune(keyless, facts(6))
    assert (report.resumed_calls, report.trainable_tokens) == (1, 30)


async def test_an_error_about_a_sample_names_its_row(keyless: TrainerServer, tune: Tune) -> None:
    refusal = error(400, "samples[1] is too long: 600 tokens", type="unprocessableContent")
    keyless.refuse = lambda _: refusal
    with pytest.raises(UnprocessableContentError) as raised:
        await tune(keyless, facts(4), seed=3)
    row = int(keyless.calls[0].json()["samples"][1]["inputs"][1]["value"].split()[1])
    assert f"samples[1] (row {row}) is too long" in str(raised.value)


async def test_a_refused_token_stops_the_run_and_shows_no_token(
    keyless: TrainerServer, tune: Tune, tmp_path: Path
) -> None:
    keyless.refuse = lambda _: error(401, "bad token")
    with pytest.raises(AuthenticationError) as raised:
        await tune(keyless, facts(2))
    assert ACCESS_TOKEN not in str(raised.value) + (tmp_path / "tuning.journal.jsonl").read_text()


async def test_a_journal_may_lie_where_nothing_can_be_appended(
    keyless: TrainerServer, tune: Tune, tmp_path: Path
) -> None:
    arguments = {"journal_path": f"memory://{tmp_path.name}/journal.jsonl"}
    keyless.refuse = lambda number: error(429, "busy") if number >= 2 else None
    with pytest.raises(RateLimitError):
        await tune(keyless, facts(8), **arguments)
    keyless.refuse = lambda _: None
    report = await tune(keyless, facts(8), **arguments)
    assert report.resumed_calls == 2
    assert list(keyless.trainings.values()) == [1, 1, 1, 1]


async def test_a_run_cancelled_in_a_call_leaves_it_in_doubt(keyless: TrainerServer, tune: Tune) -> None:
    keyless.answer = lambda number: Act(wait=60) if number == 1 else None
    task = asyncio.create_task(tune(keyless, facts(6)))  # type: ignore[arg-type]
    while len(keyless.calls) < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(AmbiguousCallError, match="call 2 of 3"):
        await tune(keyless, facts(6))


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_journal_without_checksums_of_an_earlier_version_is_read_and_gets_them(
    tmp_path: Path, place: str
) -> None:
    path = UPath(tmp_path if place == "local" else f"memory://{tmp_path.name}") / "journal.jsonl"
    head = {"journal": "tuning", "schema_version": 1, "identity": "work", "fingerprint": "f", "run": "r"}
    with AppendLog(path) as lines:
        lines.append(dump_row(head))
        lines.append(b'{"event":"sent","call":0}\n')
        lines.append(b'{"event":"skipped","call":0}\n')
    for _ in range(2):
        with TuningJournal(path, identity="work", fingerprint="f") as journal:
            assert (journal.settled, journal.skipped, journal.pending) == (1, [0], False)
    with AppendLog(path) as lines:
        assert all(unsealed(line) for _, line in lines.lines())


@given(calls=st.integers(1, 4), cut=st.integers(0, 3000))
def test_a_journal_cut_at_any_byte_says_no_more_than_is_sure(
    tmp_path_factory: pytest.TempPathFactory, calls: int, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journals") / "journal.jsonl"

    def opened() -> TuningJournal:
        return TuningJournal(path, identity=None, fingerprint="f" * 64)

    planned = [PlannedCall(number=number, epoch=0, indices=(number,)) for number in range(calls)]
    with opened() as journal:
        keys = [journal.key(call) for call in planned]
        for call in planned:
            journal.sent(call)
            result = CallResult(call=call.number, epoch=0, tokens=1, sum_loss=1.0, mean_loss=1.0)
            journal.acknowledged(result, keys_honoured=True)
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    events = max(0, content.count(b"\n") - 1)
    with opened() as journal:
        assert journal.settled == len(journal.results) == events // 2
        assert journal.pending == bool(events % 2)
        assert journal.keys_honoured == (events >= 2)
        if content.count(b"\n"):
            assert [journal.key(call) for call in planned] == keys


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b"[]\n",
        b'{"event":"sent","call":0}\n',
        sealed(b'{"event":"sent","call":0}\n').replace(b"sent", b"Sent"),
        sealed(b'{"event":"acknowledged","call":0}\n'),
        sealed(b'{"event":"sent","call":5}\n'),
        sealed(b'{"event":"odd","call":0}\n'),
        sealed(b'{"call":0}\n'),
    ],
)
async def test_a_damaged_journal_is_an_error_that_says_what_to_do(
    keyless: TrainerServer, tune: Tune, tmp_path: Path, line: bytes
) -> None:
    await tune(keyless, facts(2))
    path = tmp_path / "tuning.journal.jsonl"
    head = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(head + line)
    with pytest.raises(JournalError, match=r"journal\.jsonl, line 2 is not what a tuning journal has.*new"):
        await tune(keyless, facts(2))
    assert path.read_bytes() == head + line
    path.write_bytes(b'{"journal":"completions","schema_version":1}\n')
    with pytest.raises(JournalError, match="line 1"):
        await tune(keyless, facts(2))
    assert len(keyless.calls) == 1
