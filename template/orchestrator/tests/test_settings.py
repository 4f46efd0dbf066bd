"""The settings, and what is said of a wrong one."""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
import pytest

GOOD = {
    "FUNCTION_URL": "https://us-central1-a-project.cloudfunctions.net/a-function",
    "LAKE_URI": "gs://a-lake",
    "MESSAGES_BUCKET": "some-messages",
}
Read = Callable[[Mapping[str, str]], Any]


@pytest.mark.parametrize(
    "environment",
    [
        GOOD,
        {**GOOD, "FUNCTION_URL": "http://127.0.0.1:8080", "LAKE_URI": "/data/lake"},
        {**GOOD, "FUNCTION_URL": "http://localhost:8080", "LAKE_URI": "gs://a-lake/tables"},
        {**GOOD, "FUNCTION_TIMEOUT": "540"},
        {**GOOD, "FUNCTION_AUDIENCE": "https://people.example.com"},
        {**GOOD, "IMPERSONATE_SERVICE_ACCOUNT": "dagster@a-project.iam.gserviceaccount.com"},
    ],
)
def test_valid_settings_are_read(environment: Mapping[str, str], read_settings: Read) -> None:
    settings = dict(vars(read_settings(environment)))

    assert settings.pop("function_timeout") == float(environment.get("FUNCTION_TIMEOUT", "3600"))
    for name, value in settings.items():
        assert value == environment.get(name.upper())


@pytest.mark.parametrize("variable", GOOD)
@pytest.mark.parametrize("value", ["", "  ", "relative/path", "http://example.com", "gs://UPPER"])
def test_an_invalid_setting_is_an_error_with_its_name_and_fix(
    variable: str, value: str, read_settings: Read
) -> None:
    with pytest.raises(dg.Failure) as error:
        read_settings({**GOOD, variable: value})

    assert str(error.value).startswith(f"{variable} ")
    assert "Set it in orchestrator/.env" in str(error.value)


@pytest.mark.parametrize("value", ["0", "-1", "3601", "10 minutes", "1e3"])
def test_an_invalid_timeout_is_named(value: str, read_settings: Read) -> None:
    with pytest.raises(dg.Failure, match=f"FUNCTION_TIMEOUT must be .* it is '{value}'"):
        read_settings({**GOOD, "FUNCTION_TIMEOUT": value})


def test_an_account_that_is_not_a_service_account_is_an_error(read_settings: Read) -> None:
    with pytest.raises(dg.Failure, match="e-mail address of a service account"):
        read_settings({**GOOD, "IMPERSONATE_SERVICE_ACCOUNT": "me@example.com"})


@pytest.mark.parametrize("variable", GOOD)
def test_a_run_without_a_setting_fails_at_its_start_and_says_so(
    variable: str,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(variable)
    job = definitions.resolve_implicit_global_asset_job_def()

    result = job.execute_in_process(instance=instance, raise_on_error=False)

    assert not result.success
    errors = [
        str(entry.dagster_event.event_specific_data)
        for entry in instance.all_logs(result.run_id)
        if entry.dagster_event is not None and entry.dagster_event.is_failure
    ]
    assert any(f"{variable} is not set. Set it in orchestrator/.env" in error for error in errors)
