"""Finds the URLs of functions, and derives what it can from them."""

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

# What follows the name of a service in its host, the same for all services of a project and region:
# the project's number and the region, or a hash of them. https://cloud.google.com/run/docs/triggering/https-request
_AFTER_NAME = r"-[0-9]+\.[a-z0-9-]+\.run\.app|-[a-z0-9]+-[a-z0-9]+\.a\.run\.app"


def is_loopback(url: str) -> bool:
    """Whether a URL is of this machine."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def root_url(function_url: str) -> str:
    """The root URL of a function, which is the audience of its identity tokens.

    Functions under `cloudfunctions.net` share a host, so there it includes the function's name.
    """
    parts = urlsplit(function_url)
    root = f"{parts.scheme}://{parts.netloc}"
    if parts.netloc.endswith(".cloudfunctions.net"):
        return f"{root}/{parts.path.strip('/').split('/')[0]}"
    return root


def url_variable(function: str) -> str:
    """The environment variable with the URL of one of the project's further functions."""
    return f"FUNCTION_URL_{function.upper().replace('-', '_')}"


def find_url(
    function: str, function_url: str | None, environment: Mapping[str, str] = os.environ
) -> str | None:
    """The URL of a function: its own variable, or next to another function.

    Args:
        function: The name of the function.
        function_url: The URL of a function in the same Google Cloud project and region, if the
            function has that name there.
        environment: The environment variables.

    Returns:
        The URL, or None if it is neither set nor can be derived.
    """
    if url := environment.get(url_variable(function)):
        return url
    return sibling_url(function_url, function) if function_url else None


def sibling_url(function_url: str, function: str) -> str | None:
    """The URL of another function in the same project and region; None if it cannot be derived."""
    host = urlsplit(function_url).hostname or ""
    if host.endswith(".cloudfunctions.net"):
        return f"https://{host}/{function}"
    if match := re.fullmatch(f".+?({_AFTER_NAME})", host):
        return f"https://{function}{match[1]}"
    return None
