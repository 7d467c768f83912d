"""Who may come in: every operation needs a token, and a workspace that the token opens."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from fastapi import Request

from airflow_provider_gradient.server.failures import bad_token, wrong_workspace
from airflow_provider_gradient.server.store import hash_token

WORKSPACE_HEADER = "x-gradient-workspace-id"


class AccessCheck:
    """Finds the caller's workspace.

    All tokens are compared, and each in constant time, so that the time taken tells nothing about them.

    :param tokens: the workspace each token opens, by the token's hash.
    """

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens = dict(tokens)

    def workspace_of(self, request: Request) -> str:
        """The id of the workspace that the request names and its token opens.

        :raises AuthenticationError: the token is missing or unknown.
        :raises PermissionDeniedError: the workspace is missing or not the token's.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise bad_token("the Authorization header must be 'Bearer <access token>'")
        presented = hash_token(token.strip())
        opened = None
        for known, workspace in self._tokens.items():
            if hmac.compare_digest(known, presented):
                opened = workspace
        if opened is None:
            raise bad_token("this access token is not valid here")
        named = request.headers.get(WORKSPACE_HEADER, "")
        if not named:
            raise wrong_workspace(f"the {WORKSPACE_HEADER} header is missing")
        if not hmac.compare_digest(opened.encode(), named.encode()):
            raise wrong_workspace("this access token doesn't open that workspace")
        return opened
