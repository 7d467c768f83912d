"""The command: what it makes at a first start, what it refuses and how it says so."""

from __future__ import annotations

import os
import shlex
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from typer.testing import CliRunner

from airflow_provider_gradient.server.__main__ import app
from airflow_provider_gradient.server.accounts import Accounts, hash_token
from airflow_provider_gradient.server.credentials import ready_lines, resolve_credentials
from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.settings import ServerSettings, StartError
from airflow_provider_gradient.server.store import Store

if TYPE_CHECKING:
    from tests.server.conftest import Caller


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRADIENT_")}
    return subprocess.run(
        [sys.executable, "-m", "airflow_provider_gradient.server", *options],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean | environment,
    )


def refused(*options: str, **environment: str) -> str:
    """Why the command refuses to start."""
    process = run(*options, **environment)
    assert process.returncode in (1, 2), process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout == ""
    return " ".join(process.stderr.split())


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    """Those of a new data directory."""
    store = Store(tmp_path / "gradient.db")
    yield store.accounts
    store.close()


def test_the_first_start_makes_credentials_that_only_their_owner_can_read(gradient_server: Any) -> None:
    path = gradient_server.data_dir / "credentials.env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(gradient_server.data_dir.stat().st_mode) == 0o700
    assert str(path) in gradient_server.ready_line
    assert gradient_server.ready_line.count("\n") == 1
    shell = subprocess.run(
        ["sh", "-c", f". {shlex.quote(str(path))} && env"], capture_output=True, text=True, check=True
    )
    values = dict(line.split("=", 1) for line in shell.stdout.splitlines() if line.startswith("GRADIENT_"))
    assert values == {
        "GRADIENT_API_URL": gradient_server.url,
        "GRADIENT_ACCESS_TOKEN": gradient_server.access_token,
        "GRADIENT_WORKSPACE_ID": gradient_server.workspace_id,
    }
    assert len(gradient_server.access_token) >= 32


def test_credentials_may_be_given_and_are_written_nowhere(
    start_server: Callable[..., Any], tmp_path: Path
) -> None:
    given = {"GRADIENT_ACCESS_TOKEN": "a-given-token", "GRADIENT_WORKSPACE_ID": "mine_workspace"}
    server = start_server(data_dir=tmp_path / "given", environment=given)
    server.access_token, server.workspace_id = given.values()
    assert httpx.get(f"{server.url}/models", headers=server.headers).status_code == 200
    assert "a-given-token" not in server.ready_line + server.log()
    for path in (tmp_path / "given").rglob("*"):
        assert not path.is_file() or b"a-given-token" not in path.read_bytes()


def test_a_new_token_of_the_start_replaces_the_one_before(accounts: Accounts) -> None:
    accounts.grant(token="first", workspace_id="w")
    accounts.grant(token="second", workspace_id="w")
    assert accounts.opening() == {hash_token("second"): "w"}
    assert accounts.start_workspace() == "w"


def test_a_lost_credentials_file_means_a_new_token_for_the_same_workspace(
    accounts: Accounts, tmp_path: Path
) -> None:
    settings = ServerSettings(data_dir=tmp_path)
    first = resolve_credentials(settings, accounts, url="http://127.0.0.1:1/api")
    again = resolve_credentials(settings, accounts, url="http://127.0.0.1:2/api")
    assert again == first
    assert "127.0.0.1:2" in (tmp_path / "credentials.env").read_text()
    (tmp_path / "credentials.env").unlink()
    anew = resolve_credentials(settings, accounts, url="http://127.0.0.1:3/api")
    assert anew.workspace_id == first.workspace_id
    assert anew.access_token != first.access_token
    assert first.access_token is not None
    assert first.access_token not in repr(first)
    assert hash_token(first.access_token) not in accounts.opening()


def test_a_start_with_tokens_made_by_command_alone_withdraws_the_starts_own(
    accounts: Accounts, tmp_path: Path
) -> None:
    settings = ServerSettings(data_dir=tmp_path)
    own = resolve_credentials(settings, accounts, url="http://127.0.0.1:1/api")
    assert own.workspace_id is not None
    token = accounts.create_token(workspace_id=own.workspace_id)
    assert len(accounts.opening()) == 2
    (tmp_path / "credentials.env").unlink()
    found = resolve_credentials(settings, accounts, url="http://127.0.0.1:2/api")
    assert (found.access_token, found.workspace_id) == (None, own.workspace_id)
    assert list(accounts.opening()) == [hash_token(token)]
    assert "gradient token create" in ready_lines("http://127.0.0.1:2/api", found)


def test_the_lines_printed_give_a_shell_what_a_client_needs_and_hold_no_secret(
    accounts: Accounts, tmp_path: Path
) -> None:
    settings = ServerSettings(data_dir=tmp_path / "it's a folder")
    settings.data_dir.mkdir()
    made = resolve_credentials(settings, accounts, url="http://127.0.0.1:1/api")
    assert made.access_token is not None
    ready, *lines = ready_lines("http://127.0.0.1:1/api", made).splitlines()
    assert len(lines) == 3
    assert made.access_token not in ready + "".join(lines)
    shell = subprocess.run(
        ["sh", "-c", "\n".join([*lines, "env"])], capture_output=True, text=True, check=True
    ).stdout
    values = dict(line.split("=", 1) for line in shell.splitlines() if line.startswith("GRADIENT_"))
    assert values == {
        "GRADIENT_API_URL": "http://127.0.0.1:1/api",
        "GRADIENT_ACCESS_TOKEN": made.access_token,
        "GRADIENT_WORKSPACE_ID": made.workspace_id,
    }


def test_a_credentials_file_that_is_none_is_said_to_be(accounts: Accounts, tmp_path: Path) -> None:
    (tmp_path / "credentials.env").write_text("export GRADIENT_API_URL=http://elsewhere\n")
    with pytest.raises(StartError, match=r"credentials\.env lacks GRADIENT_ACCESS_TOKEN"):
        resolve_credentials(ServerSettings(data_dir=tmp_path), accounts, url="u")


def test_a_port_that_is_taken_is_said_with_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        message = refused("--port", port, "--data-dir", str(tmp_path))
    assert f"can't listen on 127.0.0.1 port {port}: Address already in use" in message
    assert "--port" in message


def test_an_address_that_is_not_here_is_said(tmp_path: Path) -> None:
    given = {"GRADIENT_ACCESS_TOKEN": "t", "GRADIENT_WORKSPACE_ID": "w"}
    message = refused("--host", "192.0.2.1", "--port", "0", "--data-dir", str(tmp_path), **given)
    assert "can't listen on 192.0.2.1" in message


def test_a_data_directory_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        message = refused("--port", "0", "--data-dir", str(path))
        assert f"--data-dir {path} can't be used" in message
        assert "write" in message


def test_records_that_are_no_database_are_said(tmp_path: Path) -> None:
    (tmp_path / "gradient.db").write_text("something else altogether\n" * 100)
    message = refused("--port", "0", "--data-dir", str(tmp_path))
    assert "its records can't be opened: file is not a database" in message


def test_a_data_directory_serves_one_server_at_a_time(gradient_server: Any) -> None:
    message = refused("--port", "0", "--data-dir", str(gradient_server.data_dir))
    assert "another server is using it" in message


@pytest.mark.parametrize(
    ("broken", "said"), [("model.safetensors", "can't be loaded"), ("gradient.json", "traning: Extra inputs")]
)
def test_a_model_that_cannot_be_loaded_is_said(
    broken: str, said: str, llama_directory: Path, tmp_path: Path
) -> None:
    for path in llama_directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / broken).write_text('{"name": "n", "traning": {}}')
    with pytest.raises(StartError) as refusal:
        ServedModel.load("mine", tmp_path)
    assert f"base model 'mine' in {tmp_path}" in str(refusal.value)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--base-model", "mine"], "--base-model mine: must be two names with '=' between them"),
        (["--base-model", "m=/nowhere"], "base model 'm': /nowhere is no Hugging Face model directory"),
        (["--base-model", "tiny=/somewhere"], "the built-in model has that slug"),
        (["--base-model", "a b=/somewhere"], "slug 'a b'"),
        (["--base-model", "m=/a", "--base-model", "m=/b"], "'m' is given twice"),
        (["--alias", "nous-hermes2=nothing"], "no model has the slug 'nothing'; there are: tiny"),
        (["--alias", "tiny=tiny"], "a model has that slug already"),
        (["--port", "70000"], "between 0 and 65535"),
        (["--threads", "0"], "--threads 0"),
        (["--access-token", "t"], "the access token is given, the workspace id is not"),
        (["--workspace-id", "w"], "the workspace id is given, the access token is not"),
        (["--access-token", "a b", "--workspace-id", "w"], "without a blank"),
        (["--max-queue", "0"], "--max-queue 0: must be at least 1"),
        (["--log-format", "xml"], "xml"),
    ],
)
def test_options_that_make_no_sense_are_named(options: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--data-dir", str(tmp_path), *options])
    assert result.exit_code in (1, 2)
    assert said in result.stderr


def test_a_model_has_its_slug_an_alias_and_an_id_that_stay_the_same(caller: Caller) -> None:
    models = caller.models()
    ids = {model["slug"]: model["id"] for model in models}
    assert list(ids) == ["tiny", "llama", "gpt2", "fixed", "llama2-7b-chat"]
    assert ids["tiny"] == "0b42d676-e2f4-5765-a2c6-555134017d6b_base_ml_model"
    assert ids["llama2-7b-chat"] == ids["llama"]
    assert len({len(value) for value in ids.values()} | {50}) == 1
    adapter = caller.create("llama2-7b-chat")
    assert caller.http.get(f"/models/{adapter}").json()["baseModelId"] == ids["llama"]


def test_the_command_is_ready_to_refuse_before_it_imports_torch() -> None:
    code = (
        "import sys; import airflow_provider_gradient.server.command; "
        "import airflow_provider_gradient.server.serving; "
        "assert not {'torch', 'transformers', 'airflow', 'uvicorn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
