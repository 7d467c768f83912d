"""Where a client gets its settings from, and which it refuses."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from faults import ACCESS_TOKEN, MODEL_ID, FaultyServer, completion, reply
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_gradient.api import GradientConnectionError, InvalidRequestError
from airflow_provider_gradient.client import GradientClient, RetryPolicy, Timeouts, normalise_base_url

URLS = {
    "https://x": "https://x/api",
    "https://x/": "https://x/api",
    "https://x/api": "https://x/api",
    "https://x/api/": "https://x/api",
    "https://x//": "https://x/api",
    "https://x/gw": "https://x/gw/api",
    "https://x/gw/": "https://x/gw/api",
    "https://x/gw/api": "https://x/gw/api",
    "https://x/gw/api/": "https://x/gw/api",
    "https://x/myapi": "https://x/myapi/api",
    "https://x/api/v2": "https://x/api/v2/api",
    "  https://x/api\n": "https://x/api",
    "HTTP://LOCALHOST:3026": "http://localhost:3026/api",
    "http://[::1]:80/": "http://[::1]:80/api",
    "http://127.0.0.1:1/a%20b/": "http://127.0.0.1:1/a%20b/api",
}
NO_URLS = {
    "http://.0": "host",
    "": "http",
    "x": "begin with http:// or https://",
    "localhost:3026": "begin with http:// or https://",
    "x.example.com/api": "begin with http:// or https://",
    "ftp://x/api": "begin with http:// or https://",
    "http:/x": "begin with http:// or https://",
    "http://": "host",
    "http:///api": "host",
    "http://x y/api": "host",
    "http://x:port/api": "not a URL",
    "http://x:99999/api": "not a URL",
    "http://[::1/api": "not a URL",
    "https://x/api?key=1": "query",
    "https://x/api#here": "fragment",
    "https://user:secret@x/api": "credentials",
    "https://secret@x": "credentials",
    "user:secret@x": "credentials",
}


@pytest.mark.parametrize("url", URLS)
def test_a_base_url_is_brought_to_one_form(url):
    assert normalise_base_url(url) == URLS[url]
    assert normalise_base_url(URLS[url]) == URLS[url]


@pytest.mark.parametrize("url", NO_URLS)
def test_what_is_no_base_url_is_refused_without_repeating_secrets(url):
    with pytest.raises(InvalidRequestError, match=NO_URLS[url]) as raised:
        normalise_base_url(url)
    assert "secret" not in str(raised.value)


@given(st.text() | st.text().map("http://x".__add__) | st.text().map("https://x/".__add__))
def test_any_text_is_a_base_url_that_can_be_called_or_a_clear_error(text):
    try:
        url = normalise_base_url(text)
    except InvalidRequestError:
        return
    assert url.endswith("/api")
    assert normalise_base_url(url) == url
    host = httpx.URL(url).raw_host
    assert host
    assert host.decode().encode("idna")


def test_the_environment_serves_where_an_argument_lacks(monkeypatch):
    monkeypatch.setenv("GRADIENT_ACCESS_TOKEN", " from-the-environment\n")
    monkeypatch.setenv("GRADIENT_WORKSPACE_ID", "from-there-too")
    assert GradientClient().base_url == "https://api.gradient.ai/api"
    monkeypatch.setenv("GRADIENT_API_URL", "http://127.0.0.1:1")
    client = GradientClient()
    assert (client.base_url, client.workspace_id) == ("http://127.0.0.1:1/api", "from-there-too")
    assert GradientClient(workspace_id="mine", base_url="http://x").workspace_id == "mine"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"workspace_id": "w"}, "access_token.*GRADIENT_ACCESS_TOKEN"),
        ({"access_token": "t"}, "workspace_id.*GRADIENT_WORKSPACE_ID"),
        ({"access_token": " ", "workspace_id": "w"}, "access_token"),
        ({"access_token": "secret\nX-Evil: 1", "workspace_id": "w"}, "access_token"),
        ({"access_token": "sécret", "workspace_id": "w"}, "access_token"),
        (
            {"access_token": "t", "workspace_id": "w", "verify": "/no/such/bundle.pem"},
            "verify.*no/such/bundle",
        ),
        ({"access_token": "t", "workspace_id": "w", "proxy": "secret:proxy"}, "proxy"),
    ],
)
def test_a_missing_or_wrong_setting_is_named(connect, arguments, names):
    with pytest.raises(InvalidRequestError, match=names) as raised:
        GradientClient(**arguments)
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Timeouts(connect=0),
        lambda: Timeouts(read=-1),
        lambda: Timeouts(total=float("inf")),
        lambda: Timeouts(total="60"),
        lambda: RetryPolicy(attempts=0),
        lambda: RetryPolicy(attempts=2.5),
        lambda: RetryPolicy(base=0),
        lambda: RetryPolicy(longest=float("nan")),
    ],
)
def test_impossible_times_are_refused(make):
    with pytest.raises(InvalidRequestError, match=r"(timeouts|retries)\.\w+ must be"):
        make()


def test_a_client_shows_where_it_calls_and_not_its_token(connect):
    client = connect(base_url="http://127.0.0.1:1", proxy="http://user:proxy-secret@127.0.0.1:2").client
    assert "http://127.0.0.1:1/api" in repr(client)
    for shown in (repr(client), repr(client._endpoint), str(vars(client))):
        assert ACCESS_TOKEN not in shown
        assert "proxy-secret" not in shown


@pytest.mark.parametrize("operation", ["complete", "list_models"])
def test_calls_go_through_the_proxy_that_is_given(connect, operation):
    answer = completion("yes") if operation == "complete" else reply(body={"models": []})
    with FaultyServer(answer) as proxy:
        call = connect(base_url="http://gradient.invalid", proxy=f"http://127.0.0.1:{proxy.port}")
        call(operation, *([MODEL_ID, "hello"] if operation == "complete" else []))
    assert proxy.requests[0].path.startswith("http://gradient.invalid/api/models")


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


@pytest.mark.parametrize("operation", ["complete", "list_models"])
class TestCertificates:
    def run(self, call, operation):
        return call(operation, *([MODEL_ID, "hello"] if operation == "complete" else []))

    def answer(self, operation):
        return completion("yes") if operation == "complete" else reply(body={"models": []})

    def test_of_an_authority_in_the_bundle_are_trusted(self, connect, authority, operation):
        bundle, context = authority
        with FaultyServer(self.answer(operation), tls=context) as server:
            self.run(connect(base_url=server.url, verify=str(bundle)), operation)
        assert len(server.requests) == 1

    def test_of_an_unknown_authority_are_not(self, connect, authority, operation):
        with FaultyServer(self.answer(operation), tls=authority[1]) as server:
            call = connect(base_url=server.url, retries=RetryPolicy(attempts=1))
            with pytest.raises(GradientConnectionError, match=r"(?i)certificate"):
                self.run(call, operation)
        assert server.requests == []

    def test_are_not_looked_at_where_verification_is_off(self, connect, authority, operation):
        with FaultyServer(self.answer(operation), tls=authority[1]) as server:
            self.run(connect(base_url=server.url, verify=False), operation)
        assert len(server.requests) == 1

    def test_that_are_none_are_an_error_that_names_the_bundle(self, connect, tmp_path, operation):
        bundle = tmp_path / "bundle.pem"
        bundle.write_text("nothing of the kind")
        call = connect(base_url="https://127.0.0.1:1", verify=str(bundle))
        with pytest.raises(InvalidRequestError, match=r"bundle\.pem"):
            self.run(call, operation)
