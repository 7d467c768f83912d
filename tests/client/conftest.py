"""Both clients behind one blocking call, so that every test runs with either; a certificate authority."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from faults import ACCESS_TOKEN, WORKSPACE_ID

from airflow_provider_gradient.client import AsyncGradientClient, GradientClient, RetryPolicy, pool

QUICK = RetryPolicy(attempts=5, base=0.01)


class Caller:
    """A client, blocking or not: ``caller("complete", model_id, query)``."""

    def __init__(self, *, asynchronous: bool, **arguments: Any) -> None:
        given = {"access_token": ACCESS_TOKEN, "workspace_id": WORKSPACE_ID, "retries": QUICK} | arguments
        self._runner = asyncio.Runner()
        self.client: Any = AsyncGradientClient(**given) if asynchronous else GradientClient(**given)

    def __call__(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self.client, operation)(*args, **kwargs)
        return self._runner.run(result) if asyncio.iscoroutine(result) else result

    def close(self) -> None:
        self("aclose" if isinstance(self.client, AsyncGradientClient) else "close")
        self._runner.close()


@pytest.fixture(params=[False, True], ids=["blocking", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Caller]]:
    """Makes clients: ``connect(base_url=...)``, with credentials that the test need not care for."""
    callers: list[Caller] = []

    def make(**arguments: Any) -> Caller:
        callers.append(Caller(asynchronous=request.param, **arguments))
        return callers[-1]

    yield make
    for caller in callers:
        caller.close()


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are used again at once, even where the server does not tell whose answers it sends."""
    monkeypatch.setattr(pool, "REST_SECONDS", 0.0)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate authority of the tests' own, and a server's side signed by it for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    ca_key, ca = _certificate("Test authority")
    _, other = _certificate("Another authority")
    key, certificate = _certificate("127.0.0.1", signed_by=(ca_key, ca))
    pem = serialization.Encoding.PEM
    bundle = folder / "bundle of authorities.pem"
    bundle.write_bytes(other.public_bytes(pem) + ca.public_bytes(pem))
    chain = folder / "server.pem"
    plain = serialization.NoEncryption()
    chain.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return bundle, context


def _certificate(name, signed_by=None):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_key, issuer = (signed_by[0], signed_by[1].subject) if signed_by else (key, subject)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signed_by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if signed_by:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))])
        usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(names, critical=False).add_extension(usage, critical=False)
    else:
        signing = {"key_cert_sign": True, "crl_sign": True, "digital_signature": True}
        others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        nothing = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
        builder = builder.add_extension(x509.KeyUsage(**signing, **nothing), critical=True)
    return key, builder.sign(issuer_key, hashes.SHA256())
