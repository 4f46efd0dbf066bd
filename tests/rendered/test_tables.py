"""Tables of a rendered project, by the benchmarks."""

import re
from pathlib import Path

import pytest
from conftest import TEMPLATE, Render, run


@pytest.fixture(scope="module")
def function(render: Render) -> Path:
    """The function of a project."""
    return render() / "cloud_function"


def benchmark(name: str, function: Path, *options: str) -> str:
    """Check the types of a benchmark, run it, and return what it prints."""
    file = str(TEMPLATE / "benchmarks" / name)
    places = {"PYTHONPATH": str(function), "MYPYPATH": str(function)}
    run("uv", "run", "mypy", file, cwd=function, env=places)
    return run("uv", "run", "python", file, *options, cwd=function, env=places).stdout


def test_two_hundred_partitions_written_at_once_neither_fail_nor_double(function: Path) -> None:
    printed = benchmark("tables.py", function)

    assert "200 partitions of a new table (median of 5)" in printed
    assert "100 in flight" in printed
    assert printed.split()[-4:] == ["missing", "or", "doubled", "0"]


def test_the_bucket_of_the_local_cloud_is_compared_with_a_folder(function: Path) -> None:
    printed = benchmark("throughput.py", function, "--mebibytes=10", "--rounds=1")

    assert re.search(r"A table of \d+ MiB \(median of 1\)", printed)
    assert re.search(r"^write, read +[\d.]+ s +[\d.]+ s +[\d.]+$", printed, re.MULTILINE)
