"""Who may come in: every operation needs a token, and a workspace that the token opens."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping

from starlette.requests import Request

from airflow_provider_gradient.server.accounts import hash_token
from airflow_provider_gradient.server.admission import RequestRates
from airflow_provider_gradient.server.failures import bad_token, wrong_workspace

WORKSPACE_HEADER = "x-gradient-workspace-id"
_TOKENS_LAST_SECONDS = 1.0
"""A token made or revoked by command counts after a second at most."""


class AccessCheck:
    """Finds the caller's workspace.

    All tokens are compared, and each in constant time, so that the time taken tells nothing about them.

    :param opening: reads the workspace that each token opens, by the token's hash.
    :param rates: how many requests each token may make.
    """

    def __init__(self, opening: Callable[[], Mapping[str, str]], rates: RequestRates) -> None:
        self._opening = opening
        self._rates = rates
        self._tokens = opening()
        self._read_at = time.monotonic()

    def workspace_of(self, request: Request) -> str:
        """The id of the workspace that the request names and its token opens.

        :raises AuthenticationError: the token is missing or unknown.
        :raises PermissionDeniedError: the workspace is missing or not the token's.
        :raises RateLimitError: the token made too many requests.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise bad_token("the Authorization header must be 'Bearer <access token>'")
        presented = hash_token(token.strip())
        opened = None
        for known, workspace in self._current().items():
            if hmac.compare_digest(known, presented):
                opened = workspace
        if opened is None:
            raise bad_token("this access token is not valid here")
        named = request.headers.get(WORKSPACE_HEADER, "")
        if not named:
            raise wrong_workspace(f"the {WORKSPACE_HEADER} header is missing")
        if not hmac.compare_digest(opened.encode(), named.encode()):
            raise wrong_workspace("this access token doesn't open that workspace")
        self._rates.spend(presented)
        return opened

    def _current(self) -> Mapping[str, str]:
        now = time.monotonic()
        if now - self._read_at > _TOKENS_LAST_SECONDS:
            self._tokens, self._read_at = self._opening(), now
        return self._tokens
