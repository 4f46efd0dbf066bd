"""The settings of the Cloud Run job, and what is said of a wrong one."""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
import pytest

GOOD = {
    "JOB_NAME": "nightly",
    "GOOGLE_CLOUD_PROJECT": "a-project",
    "GOOGLE_CLOUD_REGION": "us-central1",
}
Read = Callable[[Mapping[str, str]], Any]


def test_valid_settings_are_read(read_job_settings: Read) -> None:
    settings = vars(read_job_settings({**GOOD, "JOB_TIMEOUT": "540"}))

    assert settings == {
        "job_name": "nightly",
        "job_timeout": 540.0,
        "google_cloud_project": "a-project",
        "google_cloud_region": "us-central1",
        "cloud_run_endpoint": "https://run.googleapis.com",
    }


def test_a_task_may_run_for_a_day_by_default(read_job_settings: Read) -> None:
    assert read_job_settings(GOOD).job_timeout == 24 * 60 * 60


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JOB_NAME", ""),
        ("JOB_NAME", "projects/a/jobs/nightly"),
        ("GOOGLE_CLOUD_PROJECT", ""),
        ("GOOGLE_CLOUD_REGION", "  "),
        ("JOB_TIMEOUT", "0"),
        ("JOB_TIMEOUT", "a day"),
    ],
)
def test_an_invalid_setting_is_an_error_with_its_name_and_fix(
    variable: str, value: str, read_job_settings: Read
) -> None:
    with pytest.raises(dg.Failure) as error:
        read_job_settings({**GOOD, variable: value})

    assert str(error.value).startswith(f"{variable} ")
    assert "Set it in orchestrator/.env" in str(error.value)
