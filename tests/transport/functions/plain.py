"""A function that knows nothing of Pipes: it responds with what the event says."""

import time

import flask


def main(request: flask.Request) -> flask.typing.ResponseReturnValue:
    """Respond with the value of `answer`, or with `text`, after some time."""
    event = request.get_json()
    time.sleep(event.get("seconds", 0))
    body = event["text"] if "text" in event else flask.jsonify(event.get("answer", event))
    return body, event.get("status", 200)
