"""``Idempotency-Key``: the same call again gives the first answer again, and is done once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

    from tests.server.conftest import Caller

KEY = "Idempotency-Key"


def fine_tune(caller: Caller, adapter: str, text: str, key: str) -> httpx.Response:
    body = {"samples": [{"inputs": text}]}
    return caller.http.post(f"/models/{adapter}/fine-tune", json=body, headers={KEY: key})


def test_a_repeated_fine_tune_gives_the_first_answer_and_trains_once(caller: Caller) -> None:
    adapter = caller.create()
    first = fine_tune(caller, adapter, "the red hen", f"once {adapter}")
    again = fine_tune(caller, adapter, "the red hen", f"once {adapter}")
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()
    assert again.headers[KEY] == first.headers[KEY] == f"once {adapter}"
    assert caller.complete(adapter, "the")["modelVersion"] == 1


def test_fields_given_as_null_or_not_at_all_are_the_same_call(caller: Caller) -> None:
    adapter = caller.create()
    bodies = [
        {"samples": [{"inputs": "the hen"}]},
        {"samples": [{"fineTuningParameters": None, "inputs": "the hen"}]},
    ]
    path, headers = f"/models/{adapter}/fine-tune", {KEY: f"null {adapter}"}
    first, again = (caller.http.post(path, json=body, headers=headers).json() for body in bodies)
    assert first == again


def test_a_repeat_while_the_first_still_runs_waits_for_its_answer(caller: Caller) -> None:
    adapter = caller.create()
    with ThreadPoolExecutor(4) as pool:
        text, key = "the red hen " * 5, f"twice {adapter}"
        answers = list(pool.map(lambda _: fine_tune(caller, adapter, text, key).json(), range(4)))
    assert answers == [answers[0]] * 4
    assert caller.complete(adapter, "the")["modelVersion"] == 1


def test_without_a_key_the_same_call_is_done_again(caller: Caller) -> None:
    adapter = caller.create()
    for version in (1, 2):
        assert caller.fine_tune(adapter, "the red hen")["modelVersion"] == version


def test_a_key_that_comes_with_another_request_is_refused_and_nothing_is_done(caller: Caller) -> None:
    adapter, other = caller.create(), caller.create()
    key = f"reused {adapter}"
    assert fine_tune(caller, adapter, "the red hen", key).status_code == 200
    refused = [
        fine_tune(caller, adapter, "the green hen", key),
        fine_tune(caller, other, "the red hen", key),
        caller.http.post(
            "/models", json={"model": {"baseModelId": caller.base_id(), "name": "n"}}, headers={KEY: key}
        ),
    ]
    for response in refused:
        assert (response.status_code, response.json()["type"]) == (400, "failed")
        assert KEY in response.json()["message"]
    assert caller.complete(adapter, "the")["modelVersion"] == 1
    assert caller.complete(other, "the")["modelVersion"] == 0


def test_a_repeated_creation_gives_the_same_adapter(caller: Caller) -> None:
    body = {"model": {"baseModelId": caller.base_id(), "name": "created once"}}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: caller.http.post("/models", json=body, headers={KEY: "creation"}), range(8))
        )
    assert {answer.headers[KEY] for answer in answers} == {"creation"}
    assert len({answer.json()["id"] for answer in answers}) == 1
    models = caller.http.get("/models").json()["models"]
    assert [model["name"] for model in models].count("created once") == 1


def test_after_its_adapter_is_deleted_a_creation_makes_a_new_one(caller: Caller) -> None:
    headers = {KEY: "made anew"}
    first = caller.create(**headers)
    assert caller.http.delete(f"/models/{first}").status_code == 200
    second = caller.create(**headers)
    assert second != first
    assert caller.http.get(f"/models/{second}").status_code == 200


def test_a_failed_fine_tune_leaves_the_key_free(caller: Caller) -> None:
    adapter = caller.create()
    key = f"failed {adapter}"
    assert fine_tune(caller, adapter, "the red hen " * 200, key).status_code == 400
    assert fine_tune(caller, adapter, "the red hen", key).status_code == 200


def test_an_empty_or_endless_key_is_refused(caller: Caller) -> None:
    adapter = caller.create()
    for key in ("", "k" * 256):
        response = fine_tune(caller, adapter, "the red hen", key)
        assert (response.status_code, response.json()["type"]) == (400, "queryOrPathParsingError")
