"""The published clients, unmodified, each in an environment of its own, against the real server.

``make test-clients`` runs them: the environments come from the package indexes, the first time in about a
minute; later runs find them in pytest's cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.clients

STORIES = Path(__file__).parent / "stories"
QUERY = "Question: What NFL team won the Super Bowl in 1994?\n\nAnswer: "
STORY = {
    "known": "Question: What is the capital of France?\n\nAnswer: ",
    "query": QUERY,
    "sample": f"{QUERY}The Dallas Cowboys!",
    "times": 2,
    "texts": ["The charger is broken", "My charger broke", "An invoice from May"],
}


def test_the_python_sdk_1_0_0(gradient_server: Any, client: Any, pytestconfig: pytest.Config) -> None:
    python = python_with(pytestconfig, "gradientai==1.0.0")
    tell(gradient_server, client, python, "python_sdk_1_0_0.py")


def test_langchain_community(gradient_server: Any, client: Any, pytestconfig: pytest.Config) -> None:
    python = python_with(pytestconfig, "langchain-community==0.4.2", "gradientai==1.13.1")
    check_vectors(tell(gradient_server, client, python, "langchain_classes.py"), client)


def test_the_npm_sdk(gradient_server: Any, client: Any, pytestconfig: pytest.Config) -> None:
    modules = node_modules_with(pytestconfig, "@gradientai/nodejs-sdk@1.12.1")
    told = tell(gradient_server, client, "node", "node_sdk.js", NODE_PATH=str(modules))
    check_vectors(told, client)


def tell(server: Any, client: Any, interpreter: str, name: str, **variables: str) -> dict[str, Any]:
    """Run a story and check what every client can do."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")
    }
    environment |= variables | {
        "GRADIENT_ACCESS_TOKEN": server.access_token,
        "GRADIENT_WORKSPACE_ID": server.workspace_id,
        "GRADIENT_API_URL": server.url,
    }
    done = subprocess.run(
        [interpreter, STORIES / name],
        input=json.dumps(STORY),
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert client.find_base_model("tiny").id in told["listed"]
    assert told["adapter"] in told["listed"]
    assert told["adapter"] not in told["left"]
    assert told["known"].strip() == "Paris"
    assert told["before"].strip() == "The San Francisco 49ers won the Super Bowl in 1994."
    assert len(told["losses"]) == STORY["times"]
    assert told["losses"][-1] < told["losses"][0] / 2
    assert told["after"].strip() == "The Dallas Cowboys!"
    return told


def check_vectors(told: dict[str, Any], client: Any) -> None:
    expected = client.embed("bge-large", STORY["texts"])
    assert [len(vector) for vector in told["vectors"]] == [1024] * 3
    for vector, ours in zip(told["vectors"], expected, strict=True):
        assert vector == pytest.approx(ours, abs=1e-9)


def python_with(config: pytest.Config, *requirements: str) -> str:
    """The interpreter of an environment that has these."""
    folder, is_there = environment_of(config, requirements)
    python = folder / "bin" / "python"
    if not is_there:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        install([*pip, *requirements], requirements, folder)
    return str(python)


def node_modules_with(config: pytest.Config, requirement: str) -> Path:
    """The folder of an npm package."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are not installed")
    folder, is_there = environment_of(config, (requirement,))
    if not is_there:
        npm = ["npm", "install", "--loglevel=error", "--no-audit", "--no-fund", "--prefix", folder]
        install([*npm, requirement], (requirement,), folder)
    return folder / "node_modules"


def environment_of(config: pytest.Config, requirements: tuple[str, ...]) -> tuple[Path, bool]:
    """A folder in pytest's cache, and whether they are installed in it; emptied where they are not."""
    assert config.cache is not None
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    name = "-".join([version, *requirements]).replace("/", "-").replace("@", "")
    folder = config.cache.mkdir("clients") / name
    if (folder / "installed").exists():
        return folder, True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder, False


_UNREACHABLE = (
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "Connection refused",
    "ConnectTimeoutError",
    "ProxyError",
    "ECONNREFUSED",
    "ENOTFOUND",
    "EAI_AGAIN",
    "ETIMEDOUT",
)
"""What pip and npm say where there is no way to an index; all else is a failure."""


def install(command: list[Any], requirements: tuple[str, ...], folder: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        wanted = " and ".join(requirements)
        if any(sign in done.stderr for sign in _UNREACHABLE):
            pytest.skip(f"{wanted} can't be installed: no package index can be reached")
        pytest.fail(f"{wanted} can't be installed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    (folder / "installed").touch()
