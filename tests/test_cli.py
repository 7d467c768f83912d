"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults import (
    ACCESS_TOKEN,
    MODEL_ID,
    WORKSPACE_ID,
    FaultyServer,
    completion,
    error,
    free_port,
    html,
    reply,
)
from typer.testing import CliRunner

from airflow_provider_gradient import __version__
from airflow_provider_gradient.cli import app

COMMAND = Path(sys.executable).with_name("gradient")


def run(*arguments, stdin=None, **environment):
    """``gradient ...`` in a process of its own."""
    return subprocess.run(
        [COMMAND, *arguments],
        input=stdin,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def output(*arguments, stdin=None):
    """``gradient ...`` in this process; its standard output."""
    result = CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def failure(*arguments, stdin=None):
    """``gradient ...`` in this process, failing; its exit status and its one line on standard error."""
    result = CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=False)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert ACCESS_TOKEN not in result.stderr
    return result.exit_code, result.stderr


@pytest.fixture
def faulty(monkeypatch):
    """Starts a server that goes wrong and points the environment at it."""

    def start(*script):
        server = FaultyServer(*script)
        monkeypatch.setenv("GRADIENT_API_URL", server.url)
        monkeypatch.setenv("GRADIENT_ACCESS_TOKEN", ACCESS_TOKEN)
        monkeypatch.setenv("GRADIENT_WORKSPACE_ID", WORKSPACE_ID)
        return server

    return start


def test_an_adapter_is_made_tuned_asked_and_deleted_from_the_shell(gradient_environment, tmp_path):
    listed = run("model", "list", "--only-base")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.splitlines()[0].split()[:3] == ["TYPE", "NAME", "ID"]
    assert "tiny" in listed.stdout

    adapter_id = run("model", "create", "tiny", "from the shell", "--rank", "4").stdout.strip()
    samples = tmp_path / "my samples.jsonl"
    samples.write_text('{"inputs": [{"value": "Who? ", "trainable": false}, {"value": "Me."}]}\n')
    tuned = run("fine-tune", adapter_id, str(samples))
    assert tuned.returncode == 0, tuned.stderr
    assert tuned.stdout.startswith("1 samples, ")
    asked = run("complete", adapter_id, "-", "--choice", "Me.", "--choice", "You.", "--json", stdin="Who? \n")
    assert json.loads(asked.stdout)["generatedOutput"] in ("Me.", "You.")

    deleted = run("model", "delete", adapter_id)
    assert (deleted.returncode, deleted.stdout) == (0, f"deleted {adapter_id}\n")
    again = run("model", "delete", adapter_id)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith("Error: ")
    assert len(again.stderr.splitlines()) == 1


def test_json_is_the_apis(gradient_environment, client):
    models = json.loads(output("model", "list", "--capability", "fineTune", "--json"))
    assert models == [model.to_wire() for model in client.list_models(capability="fineTune")]
    [workspace] = json.loads(output("workspace", "list", "--json"))
    assert workspace["accepted"] is True
    assert (workspace["id"], workspace["apiUrl"]) == (client.workspace_id, client.base_url)


def test_adapters_are_listed_with_their_base_models_slug(gradient_environment, adapter):
    [line] = [line for line in output("model", "list").splitlines() if adapter in line]
    assert line.split()[:4] == ["adapter", "test", adapter, "tiny"]


def test_a_base_model_is_asked_by_its_slug_with_every_parameter(gradient_environment):
    options = [
        "--max-tokens",
        "4",
        "--temperature",
        "0",
        "--top-k",
        "1",
        "--top-p",
        "1",
        "--no-auto-template",
    ]
    answer = json.loads(output("complete", "tiny", "Once upon a time", *options, "--json"))
    assert output("complete", "tiny", "Once upon a time", *options) == answer["generatedOutput"] + "\n"
    assert answer["usage"]["completionTokens"] <= 4


def test_a_workspace_that_the_server_refuses_is_shown_as_refused(gradient_environment):
    result = CliRunner().invoke(app, ["--workspace-id", "another", "workspace", "list"])
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1].split()[:2] == ["another", "refused"]
    assert output("workspace", "list").splitlines()[1].split()[1] == "accepted"


def test_samples_come_from_a_file_from_standard_input_and_from_options(faulty, tmp_path):
    server = faulty(reply(body={"numberOfTrainableTokens": 4, "sumLoss": 2.0}))
    line = '{"inputs": "from %s", "fineTuningParameters": {"multiplier": 2}}\n'
    (tmp_path / "samples.jsonl").write_text(line % "a file")
    shown = output(
        "fine-tune", MODEL_ID, str(tmp_path / "samples.jsonl"), "--text", "from an option", "--json"
    )
    assert json.loads(shown)["meanLoss"] == 0.5
    piped = run("fine-tune", MODEL_ID, "-", stdin=line % "a pipe")
    assert piped.stdout == "1 samples, 4 trainable tokens, mean loss 0.5000 before the update\n"
    first, second = (request.json()["samples"] for request in server.requests)
    assert [sample["inputs"] for sample in first] == ["from an option", "from a file"]
    assert second == [json.loads(line % "a pipe")]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["model", "create", MODEL_ID, "n", "--rank", "64"], "rank.*32"),
        (["model", "list", "--capability", "sing"], "capability.*fineTune"),
        (["complete", MODEL_ID, ""], "query"),
        (["complete", MODEL_ID, "hello", "--max-tokens", "512"], "max_generated_token_count.*511"),
        (["fine-tune", MODEL_ID], "no samples"),
        (["fine-tune", MODEL_ID, "/no/such/file.jsonl"], "/no/such/file.jsonl"),
        (["fine-tune", MODEL_ID, "broken.jsonl"], "broken.jsonl, line 2"),
        (["fine-tune", MODEL_ID, "unknown.jsonl"], r"samples\[0\].response"),
        (["fine-tune", MODEL_ID, "empty.jsonl"], "empty.jsonl"),
        (["--timeout", "0", "model", "list"], "timeouts.total"),
        (["--ca-bundle", "/no/such.pem", "model", "list"], "CA bundle"),
        (["--api-url", "localhost:3026", "model", "list"], "http://"),
    ],
)
def test_what_is_asked_wrongly_ends_with_status_2_and_is_not_sent(
    faulty, monkeypatch, tmp_path, arguments, names
):
    monkeypatch.chdir(tmp_path)
    Path("broken.jsonl").write_text('{"inputs": "x"}\n[1]\n')
    Path("unknown.jsonl").write_text('{"inputs": "x", "response": "y"}\n')
    Path("empty.jsonl").write_text("")
    server = faulty(completion("yes"))
    status, message = failure(*arguments)
    assert status == 2
    assert re.search(names, message)
    assert server.connections == 0


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (error(401, "the access token is wrong"), "the access token is wrong (HTTP 401)"),
        (error(404, "no model\nof that id", type="unknownModelAdapter"), "no model of that id"),
        (html(), "not as a Gradient server answers"),
        (reply(302, headers={"Location": "http://elsewhere/"}), "redirects to http://elsewhere/"),
    ],
)
def test_what_the_server_refuses_ends_with_status_1_and_one_line(faulty, answer, names):
    faulty(answer)
    status, message = failure("complete", MODEL_ID, "hello")
    assert status == 1
    assert names in message


def test_a_server_that_is_down_is_named_with_its_address(faulty):
    faulty()
    port = free_port()
    status, message = failure("--api-url", f"http://127.0.0.1:{port}", "model", "list")
    assert status == 1
    assert f"127.0.0.1:{port}/api/models" in message
    assert "3 attempts" in message


def test_a_missing_token_names_its_variable():
    status, message = failure("model", "list")
    assert status == 2
    assert "GRADIENT_ACCESS_TOKEN" in message


def test_version_and_usage_errors():
    assert run("--version").stdout == f"gradient {__version__}\n"
    wrong = run("model", "lists")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_serve_starts_a_server_that_the_other_commands_reach(tmp_path):
    server = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--data-dir", str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        lines = (tmp_path / "data" / "credentials.env").read_text().splitlines()
        credentials = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        listed = run("--api-url", url, "model", "list", **credentials)
        assert listed.returncode == 0, listed.stderr
        assert "tiny" in listed.stdout
    finally:
        server.terminate()
        server.wait(60)
        server.stdout.close()


def test_serve_without_the_server_extra_says_what_to_install(tmp_path):
    program = (
        "import sys; sys.modules['torch'] = sys.modules['fastapi'] = None\n"
        "from airflow_provider_gradient.cli import app\n"
        f"app(['serve', '--port', '0', '--data-dir', {str(tmp_path / 'data')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install 'airflow-provider-gradient[server]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_loads_neither_torch_nor_airflow():
    program = (
        "import sys, airflow_provider_gradient.cli\n"
        "heavy = ('torch', 'airflow', 'fastapi', 'langchain_core', 'pyarrow', 'transformers')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
