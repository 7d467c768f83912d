"""What all tests share: one real Gradient server in a process of its own, and clients for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from airflow_provider_gradient.client import AsyncGradientClient, GradientClient

# A busy machine is no error: properties are not timed. The examples are the same in every run, so that a run
# is red for what was changed.
settings.register_profile(
    "gradient", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gradient")

SERVER_PYTHON = os.environ.get("TEST_SERVER_PYTHON", sys.executable)
"""The interpreter that the server runs under; another one where this has no torch (`make test-matrix`)."""

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

GRADIENT_VARIABLES = ("GRADIENT_ACCESS_TOKEN", "GRADIENT_WORKSPACE_ID", "GRADIENT_API_URL")


class ServerProcess:
    """A server process on a free loopback port; ``url`` ends in ``/api``.

    :param data_dir: may be one that an earlier process used.
    :param options: further options of the command.
    """

    def __init__(self, data_dir: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        self.log_path = data_dir.with_name(f"{data_dir.name}.{uuid.uuid4().hex[:8]}.log")
        clean = {name: value for name, value in os.environ.items() if name not in GRADIENT_VARIABLES}
        command = [SERVER_PYTHON, "-m", "airflow_provider_gradient.server", "--port", "0"]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(data_dir), *options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=clean | {"HF_HUB_OFFLINE": "1"} | (environment or {}),
            )
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline()
        assert self.ready_line, f"the server did not start:\n{self.log()}"
        credentials = data_dir / "credentials.env"
        self.url = next(word for word in self.ready_line.split() if word.startswith("http"))
        if credentials.exists():
            values = dict(
                line.removeprefix("export ").split("=", 1) for line in credentials.read_text().splitlines()
            )
            self.access_token = values["GRADIENT_ACCESS_TOKEN"]
            self.workspace_id = values["GRADIENT_WORKSPACE_ID"]

    def log(self) -> str:
        """What the process wrote to standard error."""
        return self.log_path.read_text(errors="replace")

    @property
    def headers(self) -> dict[str, str]:
        """The headers every request needs."""
        return {
            "Authorization": f"Bearer {self.access_token}",
            "x-gradient-workspace-id": self.workspace_id,
        }

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        self.process.kill()
        self._reap()

    def stop(self) -> int:
        """End it in good order (SIGTERM); its exit status."""
        self.process.terminate()
        return self._reap()

    def _reap(self) -> int:
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()


@pytest.fixture(autouse=True)
def _no_gradient_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test talks to a server that the developer's own shell names."""
    for name in GRADIENT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def server_process() -> type[ServerProcess]:
    """The class, for fixtures of other folders that start servers of their own."""
    return ServerProcess


@pytest.fixture(scope="session")
def gradient_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server that tests share, with the built-in model; make adapters of your own on it."""
    server = ServerProcess(tmp_path_factory.mktemp("gradient") / "data")
    yield server
    status = server.stop()
    assert status == 0, f"the server ended with status {status}:\n{server.log()}"
    assert "Traceback" not in server.log(), server.log()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers of a test's own, ``start_server(*options, data_dir=..., environment=...)``."""
    started: list[ServerProcess] = []

    def start(
        *options: str, data_dir: Path | None = None, environment: dict[str, str] | None = None
    ) -> ServerProcess:
        server = ServerProcess(data_dir or tmp_path / "data", *options, environment=environment)
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def gradient_environment(gradient_server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> ServerProcess:
    """The environment variables of the shared server are set."""
    monkeypatch.setenv("GRADIENT_API_URL", gradient_server.url)
    monkeypatch.setenv("GRADIENT_ACCESS_TOKEN", gradient_server.access_token)
    monkeypatch.setenv("GRADIENT_WORKSPACE_ID", gradient_server.workspace_id)
    return gradient_server


@pytest.fixture
def client(gradient_server: ServerProcess) -> Iterator[GradientClient]:
    """A client of the shared server."""
    from airflow_provider_gradient.client import GradientClient

    with GradientClient(
        access_token=gradient_server.access_token,
        workspace_id=gradient_server.workspace_id,
        base_url=gradient_server.url,
    ) as client:
        yield client


@pytest.fixture
def async_client(gradient_server: ServerProcess) -> Callable[[], AsyncGradientClient]:
    """Makes async clients of the shared server: ``async with async_client() as client: ...``"""

    def make() -> AsyncGradientClient:
        from airflow_provider_gradient.client import AsyncGradientClient

        return AsyncGradientClient(
            access_token=gradient_server.access_token,
            workspace_id=gradient_server.workspace_id,
            base_url=gradient_server.url,
        )

    return make


@pytest.fixture
def adapter(client: GradientClient) -> Iterator[str]:
    """The id of a fresh adapter of the built-in model; deleted afterwards, unless the test did it."""
    from airflow_provider_gradient.api import UnknownModelError

    base = client.find_base_model("tiny")
    model_id = client.create_model_adapter(base_model_id=base.id, name="test")
    yield model_id
    with contextlib.suppress(UnknownModelError):
        client.delete_model(model_id)


@pytest.fixture(scope="session")
def private_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with the key and the certificate, signed by itself, of a server on 127.0.0.1."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = tmp_path_factory.mktemp("certificate") / "private.pem"
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(pem)
    )
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium. Not for the whole session: its event loop is in the way of asyncio's tests."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright, of the extra dev, is not installed"
    )
    if not CHROMIUM:
        pytest.skip("no Chromium found; install it, or name it in the variable CHROMIUM")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()
