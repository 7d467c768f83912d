"""Many calls at once, several threads, several event loops, several processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from faults import MODEL_ID, FaultyServer, completion, reply

from airflow_provider_gradient.client import AsyncGradientClient, GradientClient


def echo(request):
    return completion(request.json()["query"].upper(), wait=0.05)


async def test_sixty_four_completions_are_in_flight_at_once_and_each_gets_its_own_answer():
    with FaultyServer(echo) as server:
        async with AsyncGradientClient(**server.credentials) as client:
            queries = [f"q{number}" for number in range(256)]
            limit = asyncio.Semaphore(64)

            async def ask(query):
                async with limit:
                    return (await client.complete(MODEL_ID, query)).generated_output

            assert await asyncio.gather(*map(ask, queries)) == [query.upper() for query in queries]
    assert 32 <= server.most_in_flight <= 64


async def test_a_cancelled_completion_leaves_the_client_usable():
    with FaultyServer(reply(wait=30), completion("yes")) as server:
        async with AsyncGradientClient(**server.credentials) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.complete(MODEL_ID, "slow"), 0.2)
            assert (await client.complete(MODEL_ID, "quick")).generated_output == "yes"


@pytest.mark.usefixtures("restless")
def test_threads_share_a_blocking_client():
    with FaultyServer(echo) as server, GradientClient(**server.credentials) as client:
        queries = [f"q{number}" for number in range(32)]
        with ThreadPoolExecutor(8) as threads:
            answers = list(
                threads.map(lambda query: client.complete(MODEL_ID, query).generated_output, queries)
            )
    assert answers == [query.upper() for query in queries]
    assert server.connections <= 8


def test_an_async_client_serves_one_event_loop_after_another():
    with FaultyServer(completion("yes"), completion("yes"), reply(body={"models": []})) as server:
        client = AsyncGradientClient(**server.credentials)
        for _ in range(2):
            assert asyncio.run(client.complete(MODEL_ID, "hello")).generated_output == "yes"
        assert asyncio.run(client.list_models()) == []
        asyncio.run(client.aclose())


def test_a_closed_client_opens_anew(connect):
    with FaultyServer(completion("yes")) as server:
        call = connect(base_url=server.url)
        for _ in range(2):
            call("complete", MODEL_ID, "hello")
            call("close" if isinstance(call.client, GradientClient) else "aclose")
        assert call("complete", MODEL_ID, "hello").generated_output == "yes"
    assert server.connections == 3


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="a system without fork")
@pytest.mark.parametrize("client", ["used before", "made after"])
def test_clients_work_in_a_process_forked_from_one_that_used_them(client):
    program = textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from airflow_provider_gradient.client import AsyncGradientClient, GradientClient

        def use(blocking, asynchronous):
            assert blocking.complete("m", "q").generated_output == "yes"
            assert asyncio.run(asynchronous.complete("m", "q")).generated_output == "yes"

        clients = GradientClient(), AsyncGradientClient()
        use(*clients)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            use(*(clients if sys.argv[1] == "used before" else (GradientClient(), AsyncGradientClient())))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        use(*clients)
        sys.exit(os.waitstatus_to_exitcode(status))
        """
    )
    with FaultyServer(completion("yes")) as server:
        environment = os.environ | {
            "GRADIENT_ACCESS_TOKEN": "t",
            "GRADIENT_WORKSPACE_ID": "w",
            "GRADIENT_API_URL": server.url,
        }
        done = subprocess.run(
            [sys.executable, "-c", program, client],
            env=environment,
            timeout=60,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert len(server.requests) == 6


def test_a_program_that_ends_right_after_its_answer_ends_well():
    program = textwrap.dedent(
        """
        import asyncio
        from airflow_provider_gradient.client import AsyncGradientClient

        asyncio.run(AsyncGradientClient().complete("m", "q"))
        """
    )
    with FaultyServer(completion("yes")) as server:
        environment = os.environ | {
            "GRADIENT_ACCESS_TOKEN": "t",
            "GRADIENT_WORKSPACE_ID": "w",
            "GRADIENT_API_URL": server.url,
        }
        ends = [
            subprocess.run([sys.executable, "-c", program], env=environment, timeout=60).returncode
            for _ in range(8)  # about half of them aborted
        ]
    assert ends == [0] * 8


def test_nothing_is_opened_before_the_first_call(connect):
    with FaultyServer() as server:
        connect(base_url=server.url)
    assert server.connections == 0
