"""A function that does nothing: what any call costs."""

import flask


def main(request: flask.Request) -> str:
    """Answer."""
    return "OK"
