"""Stands in for Google Cloud's metadata server, which hands out tokens to tasks.

Its values: https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys
"""

import json
import secrets
import time
from email.message import Message

ACCOUNT = "tasks@local.iam.gserviceaccount.com"
"""The service account that tasks run as."""

_JSON, _TEXT = "application/json", "application/text"
_ACCOUNT_PATH = "/computeMetadata/v1/instance/service-accounts/default/"
_VALUES = {
    "/": "computeMetadata/",
    f"{_ACCOUNT_PATH}email": ACCOUNT,
    "/computeMetadata/v1/project/project-id": "local",
    "/computeMetadata/v1/universe/universe-domain": "googleapis.com",
}


class MetadataServer:
    """The metadata server, which knows the tokens that it has handed out.

    Args:
        token_lifetime: How long a token is valid, in seconds.
    """

    def __init__(self, token_lifetime: float) -> None:
        self._lifetime = token_lifetime
        self._expiries: dict[str, float] = {}

    def is_valid(self, token: str) -> bool:
        """Whether a token is from this server and has not expired.

        Args:
            token: The token.
        """
        return time.monotonic() < self._expiries.get(token, 0)

    def response(self, path: str, headers: Message) -> tuple[int, str, str]:
        """The status, the content type and the body for a request.

        Args:
            path: The request's path.
            headers: The request's headers.
        """
        if path != "/" and headers.get("Metadata-Flavor") != "Google":
            return 403, _TEXT, "The header Metadata-Flavor must be Google."
        if path == f"{_ACCOUNT_PATH}token":
            token = {"access_token": self._new_token(), "expires_in": int(self._lifetime)}
            return 200, _JSON, json.dumps({**token, "token_type": "Bearer"})
        if path == _ACCOUNT_PATH:
            account = {"email": ACCOUNT, "aliases": ["default"], "scopes": []}
            return 200, _JSON, json.dumps(account)
        if path in _VALUES:
            return 200, _TEXT, _VALUES[path]
        return 404, _TEXT, "The local cloud does not have this value."

    def _new_token(self) -> str:
        now = time.monotonic()
        self._expiries = {token: end for token, end in self._expiries.items() if end > now}
        token = secrets.token_urlsafe()
        self._expiries[token] = now + self._lifetime
        return token
