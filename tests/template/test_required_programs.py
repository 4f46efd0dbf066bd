"""A test that needs a program is skipped without it, and fails in CI."""

import pytest
from conftest import require_program


@pytest.fixture(autouse=True)
def _empty_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def test_a_missing_program_skips_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)

    with pytest.raises(pytest.skip.Exception, match=r"^terraform is not in PATH\. See https://"):
        require_program("terraform")


def test_a_missing_program_fails_the_test_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")

    with pytest.raises(pytest.fail.Exception, match=r"^chromium or google-chrome is not in PATH"):
        require_program("chromium", "google-chrome")
