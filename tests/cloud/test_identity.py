"""Requests to a function behind https carry an identity token for it; local ones carry none.

Google's servers, and the way to them, are stood in for; the function and its front end are real
enough to turn requests away. The project is led to them by its environment alone.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from conftest import Render, run
from google_stand_ins import (
    DAGSTER,
    FUNCTION_HOST,
    Google,
    Request,
    claims,
    google_stand_ins,
    service_account_key,
)

FUNCTION_URL = f"https://{FUNCTION_HOST}/"
AUDIENCE = f"https://{FUNCTION_HOST}"

SCRIPT = """
import json, os, sys
from pathlib import Path
from local_cloud.cloud import local_cloud
from local_cloud.materialize_all import materialize_all

folder, google = Path(sys.argv[1]), json.loads(sys.argv[2])
with local_cloud(folder / "lake") as settings:
    (folder / "function_url").write_text(settings["FUNCTION_URL"])
    os.environ.update({**settings, **google})
    report = materialize_all("my_data_platform")
print("REPORT", json.dumps(report))
"""

PERSON = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
IMPERSONATION_URL = (
    f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{DAGSTER}"
    ":generateAccessToken"
)
FEDERATION = {
    "type": "external_account",
    "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "token_url": "https://sts.googleapis.com/v1/token",
    "credential_source": {"file": "SUBJECT_TOKEN_FILE"},
}


@dataclass(frozen=True)
class Account:
    """Who Dagster runs as.

    Attributes:
        credentials: The content of its file of credentials, if it has one.
        impersonates: Whether it is told to act as Dagster's service account.
        asks: Whether a request for an identity token is as it should be.
    """

    credentials: dict[str, Any] | None
    impersonates: bool
    asks: Callable[[Request], bool]


def by_key(request: Request) -> bool:
    """RFC 7523: a signed assertion of the account, with the audience that is wanted."""
    assertion = claims(request.body["assertion"])
    return (assertion["target_audience"], assertion["iss"]) == (AUDIENCE, DAGSTER)


def by_metadata(request: Request) -> bool:
    """The metadata server's identity endpoint, with the header that it insists on."""
    return (
        request.path.startswith("/computeMetadata/v1/instance/service-accounts/default/identity?")
        and f"audience={AUDIENCE}".replace("://", "%3A%2F%2F") in request.path
        and request.headers["metadata-flavor"] == "Google"
    )


def by_impersonation(bearer: str) -> Callable[[Request], bool]:
    """IAM Credentials, for callers that may act as the account."""

    def asks(request: Request) -> bool:
        return (
            request.path == f"/v1/projects/-/serviceAccounts/{DAGSTER}:generateIdToken"
            and request.body == {"audience": AUDIENCE, "delegates": [], "includeEmail": True}
            and request.bearer == bearer
        )

    return asks


ACCOUNTS = {
    "key": Account(service_account_key(), False, by_key),
    "metadata server": Account(None, False, by_metadata),
    "impersonation": Account(
        {
            "type": "impersonated_service_account",
            "service_account_impersonation_url": IMPERSONATION_URL,
            "source_credentials": PERSON,
            "delegates": [],
        },
        False,
        by_impersonation("of-a-person"),
    ),
    "person": Account(PERSON, True, by_impersonation("of-a-person")),
    "federation": Account(
        {**FEDERATION, "service_account_impersonation_url": IMPERSONATION_URL},
        False,
        by_impersonation("of-a-workload"),
    ),
    "federation without an account": Account(FEDERATION, True, by_impersonation("of-a-workload")),
}


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    """A project with one asset, so with one call."""
    project = render()
    [visits] = project.glob("orchestrator/src/*/defs/visits/defs.yaml")
    visits.unlink()
    return project


@pytest.fixture
def google(tmp_path: Path) -> Iterator[Google]:
    """Stand-ins for Google's servers."""
    with google_stand_ins(tmp_path) as google:
        yield google


def materialize(project: Path, google: Google, account: str, **settings: str) -> dict[str, Any]:
    """Materialize the project's assets as somebody, with the function behind its front end."""
    who = ACCOUNTS[account]
    environment = {"FUNCTION_URL": FUNCTION_URL, **google.settings, **settings}
    if who.impersonates:
        environment["IMPERSONATE_SERVICE_ACCOUNT"] = DAGSTER
    if who.credentials is not None:
        subject_token = google.folder / "subject_token"
        subject_token.write_text("proof")
        file = google.folder / "credentials.json"
        text = json.dumps(who.credentials)
        file.write_text(text.replace("SUBJECT_TOKEN_FILE", str(subject_token)))
        environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(file)
    script = google.folder / "script.py"
    script.write_text(SCRIPT)
    printed = run(
        *("uv", "run", "python", str(script), str(google.folder), json.dumps(environment)),
        cwd=project / "orchestrator",
    ).stdout
    [report] = (line for line in printed.splitlines() if line.startswith("REPORT "))
    result: dict[str, Any] = json.loads(report.removeprefix("REPORT "))
    return result


def identity_requests(google: Google) -> list[Request]:
    """The requests for identity tokens, without those that only lead to them."""
    return [
        request
        for request in google.token_requests
        if request.path.endswith("generateIdToken")
        or "/identity?" in request.path
        or "assertion" in request.body
    ]


@pytest.mark.parametrize("name", ACCOUNTS)
def test_a_token_is_requested_and_once_more_if_it_is_rejected(
    name: str, project: Path, google: Google
) -> None:
    google.rejections = 1

    report = materialize(project, google, name)

    assert report["errors"] == []
    assert "people" in report["assets"]
    asked = identity_requests(google)
    assert len(asked) == 2
    assert all(ACCOUNTS[name].asks(request) for request in asked)
    first, second = (claims(call.bearer or "") for call in google.calls)
    assert first["aud"] == second["aud"] == AUDIENCE
    assert first["number"] != second["number"]


def test_a_workload_authenticates_with_its_own_token(project: Path, google: Google) -> None:
    materialize(project, google, "federation")

    exchange = google.token_requests[0]
    assert (exchange.host, exchange.path) == ("sts.googleapis.com", "/v1/token")
    assert exchange.body["subject_token"] == "proof"
    assert exchange.body["audience"] == FEDERATION["audience"]
    assert exchange.body["grant_type"] == "urn:ietf:params:oauth:grant-type:token-exchange"


def test_messages_are_read_as_the_account_that_is_impersonated(
    project: Path, google: Google
) -> None:
    materialize(project, google, "person")

    asked = [request for request in google.token_requests if request.path.endswith("AccessToken")]
    assert {request.path.rpartition("/")[2] for request in asked} == {
        f"{DAGSTER}:generateAccessToken"
    }
    assert {request.bearer for request in asked} == {"of-a-person"}


def test_a_token_that_is_always_rejected_fails_the_step_after_two_requests(
    project: Path, google: Google
) -> None:
    google.rejections = 1_000

    report = materialize(project, google, "key")

    assert len(google.calls) == 2
    error, *_ = report["errors"]
    assert 'responded 401: Unauthorized (Bearer error="invalid_token").' in error
    assert f"an identity token of {DAGSTER} for {AUDIENCE}. If the function " in error
    assert google.calls[0].bearer not in error


def test_a_request_without_a_token_is_rejected_and_the_step_says_so(
    project: Path, google: Google
) -> None:
    report = materialize(project, google, "key", FUNCTION_URL=google.front_url)

    assert [call.bearer for call in google.calls] == [None]
    assert google.token_requests == []
    error, *_ = report["errors"]
    assert "responded 403: Forbidden. The request had no identity token, since it was" in error
    assert "Call the function by its https URL." in error


def test_a_token_for_another_audience_is_rejected_and_the_step_says_so(
    project: Path, google: Google
) -> None:
    google.audience = "https://people.example.com"

    report = materialize(project, google, "key")

    error, *_ = report["errors"]
    assert "responded 401: Unauthorized" in error
    assert f"for {AUDIENCE}. If the function has another audience, set FUNCTION_AUD" in error


def test_an_error_names_the_account_that_may_not_call_the_function(
    project: Path, google: Google
) -> None:
    google.forbidden = 99

    report = materialize(project, google, "key")

    error, *_ = report["errors"]
    assert f"responded 403: Forbidden. The request had an identity token of {DAGSTER}" in error
    assert "Grant roles/run.invoker on the function to that account." in error


def test_the_audience_can_be_set(project: Path, google: Google) -> None:
    google.audience = "https://people.example.com"

    report = materialize(project, google, "key", FUNCTION_AUDIENCE="https://people.example.com")

    assert report["errors"] == []


def test_an_expired_token_is_rejected_and_the_step_says_so(project: Path, google: Google) -> None:
    google.lifetime = -30

    report = materialize(project, google, "key")

    error, *_ = report["errors"]
    assert "responded 401: Unauthorized" in error
    assert re.search(r"which expired at \d{4}-.*\. Check this machine's clock\.", error)


def test_the_logs_of_a_call_can_be_found(project: Path, google: Google) -> None:
    metadata = materialize(project, google, "key")["assets"]["people"]["metadata"]

    [call] = google.calls
    execution_id = call.headers["function-execution-id"]
    assert str(uuid.UUID(execution_id)) == execution_id  # the id of the run
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", call.headers["traceparent"])
    trace = call.headers["traceparent"].split("-")[1]
    assert f"| trace | {trace} |" in metadata["cloud_function_call"]
    # Google may give the request another trace. The function logs the run's ID in any case.
    assert unquote(metadata["cloud_function_logs"]) == (
        "https://console.cloud.google.com/logs/query;query="
        f'trace="projects/my-gcp-project/traces/{trace}" OR labels.dagster_run_id="{execution_id}"'
        "?project=my-gcp-project"
    )
