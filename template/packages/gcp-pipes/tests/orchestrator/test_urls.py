"""What follows from the URL of a function."""

import pytest

from gcp_pipes.orchestrator.urls import find_url, root_url, sibling_url


@pytest.mark.parametrize(
    ("url", "audience"),
    [
        ("https://a-function-xyz.a.run.app", "https://a-function-xyz.a.run.app"),
        ("https://a-function-xyz.a.run.app/path?query", "https://a-function-xyz.a.run.app"),
        (
            "https://us-central1-p.cloudfunctions.net/a-function/path",
            "https://us-central1-p.cloudfunctions.net/a-function",
        ),
    ],
)
def test_a_token_is_for_the_root_url_of_the_function(url: str, audience: str) -> None:
    assert root_url(url) == audience


@pytest.mark.parametrize(
    ("known", "other"),
    [
        (
            "https://us-central1-a-project.cloudfunctions.net/a-function",
            "https://us-central1-a-project.cloudfunctions.net/reports",
        ),
        (
            "https://a-function-123456789012.us-central1.run.app",
            "https://reports-123456789012.us-central1.run.app",
        ),
        ("https://a-function-abc123xyz0-uc.a.run.app", "https://reports-abc123xyz0-uc.a.run.app"),
        ("http://127.0.0.1:8080", None),
        ("https://functions.example.com", None),
    ],
)
def test_the_url_of_another_function_follows_from_its_name(known: str, other: str | None) -> None:
    assert sibling_url(known, "reports") == other


def test_the_variable_of_a_function_has_precedence() -> None:
    known = "https://us-central1-a-project.cloudfunctions.net/a-function"
    environment = {"FUNCTION_URL_WEEKLY_REPORTS": "https://reports.example.com"}

    assert find_url("weekly_reports", known, environment) == "https://reports.example.com"
    assert find_url("others", known, environment) == known.replace("a-function", "others")
