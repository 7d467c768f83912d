"""Where a Gradient server is and who calls: the one place that holds the access token.

Whatever may be shown (``repr``, messages, logs) is made of the base URL and the workspace only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

import httpx

from airflow_provider_gradient import __version__
from airflow_provider_gradient.api import InvalidRequestError

DEFAULT_BASE_URL = "https://api.gradient.ai/api"
TOKEN_VARIABLE = "GRADIENT_ACCESS_TOKEN"  # noqa: S105 - the variable's name
WORKSPACE_VARIABLE = "GRADIENT_WORKSPACE_ID"
URL_VARIABLE = "GRADIENT_API_URL"
USER_AGENT = f"airflow-provider-gradient/{__version__}"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server, the caller's credentials, and how to reach it.

    :param base_url: normalised, ends in ``/api``.
    :param verify: whether certificates are checked, or the path of a PEM file of authorities to trust besides
        the system's.
    :param proxy: URL of an HTTP proxy for all calls; ``None`` for what the environment says.
    """

    base_url: str
    workspace_id: str
    access_token: str = field(repr=False)
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every call. They hold the token."""
        return {
            "Authorization": f"Bearer {self.access_token}",
            "x-gradient-workspace-id": self.workspace_id,
            "Accept": "application/json",
            "User-Agent": USER_AGENT,
        }


def endpoint(
    *,
    access_token: str | None,
    workspace_id: str | None,
    base_url: str | None,
    verify: bool | str,
    proxy: str | None,
) -> Endpoint:
    """A checked endpoint; what is ``None`` comes from the environment.

    :raises InvalidRequestError: names the argument and the environment variable that lack or are wrong.
    """
    return Endpoint(
        access_token=_credential("access_token", access_token, TOKEN_VARIABLE),
        workspace_id=_credential("workspace_id", workspace_id, WORKSPACE_VARIABLE),
        base_url=normalise_base_url(base_url or os.environ.get(URL_VARIABLE) or DEFAULT_BASE_URL),
        verify=_checked_verify(verify),
        proxy=_checked_proxy(proxy),
    )


def normalise_base_url(url: str) -> str:
    """The base URL as calls need it: with ``/api`` at its end and no slash after it.

    ``https://x``, ``https://x/`` and ``https://x/api/`` are the same; a path prefix stays (``https://x/gw``
    is ``https://x/gw/api``).

    :raises InvalidRequestError: not an absolute http or https URL, or one with credentials, query or
        fragment.
    """
    parts = _split("base_url", url)
    if parts.query or parts.fragment or url.rstrip().endswith(("?", "#")):
        raise InvalidRequestError("base_url must have no query and no fragment")
    path = parts.path.rstrip("/")
    if path.rpartition("/")[2] != "api":
        path += "/api"
    normalised = urlunsplit((parts.scheme, parts.netloc.lower(), path, "", ""))
    try:
        _ = httpx.URL(normalised).raw_host.decode().encode("idna")  # as a resolver is asked
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidRequestError(f"base_url must name a host: {error} (got {url.strip()!r})") from None
    return normalised


def _split(name: str, url: str) -> SplitResult:
    """The parts of an http or https URL; no message repeats one with credentials."""
    text = url.strip()
    if "@" in text.partition("://")[2].partition("/")[0] or ("://" not in text and "@" in text):
        raise InvalidRequestError(f"{name} must not hold credentials; give the token as access_token")
    try:
        parts = urlsplit(text)
        _ = parts.port, httpx.URL(text)
    except (ValueError, httpx.InvalidURL) as error:
        raise InvalidRequestError(f"{name} is not a URL: {error} (got {text!r})") from None
    if parts.scheme not in ("http", "https") or "://" not in text:
        raise InvalidRequestError(f"{name} must begin with http:// or https:// (got {text!r})")
    if not parts.hostname or not text.isprintable() or set(text) & set(' \\<>"{}|^`'):
        raise InvalidRequestError(
            f"{name} must name a host, as in https://gradient.example.com (got {text!r})"
        )
    return parts


def _credential(argument: str, value: str | None, variable: str) -> str:
    source = argument if value is not None else variable
    value = value if value is not None else os.environ.get(variable)
    if not value or not value.strip():
        raise InvalidRequestError(
            f"{argument} is missing: give it as an argument or set the environment variable {variable}"
        )
    value = value.strip()
    if not value.isascii() or not value.isprintable():
        raise InvalidRequestError(f"{source} holds characters that an HTTP header cannot carry")
    return value


def _checked_verify(verify: bool | str) -> bool | str:
    if not isinstance(verify, bool) and not Path(verify).is_file():
        raise InvalidRequestError(f"verify: there is no CA bundle {str(verify)!r}")
    return verify


def _checked_proxy(proxy: str | None) -> str | None:
    if proxy is not None and not proxy.startswith(("http://", "https://")):
        raise InvalidRequestError("proxy must begin with http:// or https://")
    return proxy
