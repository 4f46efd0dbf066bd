"""Runs the cloud function on this machine."""

import functions_framework
import pytest
from flask.testing import FlaskClient
from local_cloud.project import TASKS


@pytest.fixture
def web() -> FlaskClient:
    """Sends requests to the function, which the Functions Framework serves."""
    web: FlaskClient = functions_framework.create_app("main", str(TASKS / "main.py")).test_client()
    return web
