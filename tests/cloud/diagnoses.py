"""Runs the doctor in a rendered project, and reads what it prints."""

from collections.abc import Sequence
from pathlib import Path

from conftest import end
from google_stand_ins import Google


def diagnose(
    checks: Sequence[str], project: Path, google: Google, *arguments: str, **settings: str
) -> dict[str, str]:
    """The doctor's result of each check: `ok`, `FINDING` or `skipped`, and its text.

    Args:
        checks: The names of all checks, in order.
        project: The project.
        google: Google's servers.
        arguments: The arguments of `just doctor`.
        settings: Environment variables, in addition to those of `google`.
    """
    command = ("uv", "run", "just", "doctor", *arguments)
    environment = {**google.settings, **settings}
    status, printed = end(*command, cwd=project, env=environment, timeout=120)
    return parse_results(checks, status, printed)


def parse_results(checks: Sequence[str], status: int, printed: str) -> dict[str, str]:
    """The result of each check, of a doctor that has ended.

    Args:
        checks: The names of all checks, in order.
        status: Its exit status.
        printed: What it printed.
    """
    kinds = ("ok ", "FINDING ", "skipped ")
    results = {}
    for line in filter(lambda line: line.startswith(kinds), printed.splitlines()):
        kind, _, rest = line.partition(" ")
        name, _, text = rest.strip().partition(": ")
        results[name] = f"{kind} {text}"
    assert list(results) == list(checks), printed
    assert status == (0 if all(text.startswith("ok ") for text in results.values()) else 1)
    return results
