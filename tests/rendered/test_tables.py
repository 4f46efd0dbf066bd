"""Tables of a rendered project, under the load of many calls."""

from conftest import TEMPLATE, Render, run


def test_two_hundred_partitions_written_at_once_neither_fail_nor_double(
    render: Render,
) -> None:
    function = render() / "cloud_function"
    benchmark = TEMPLATE / "benchmarks" / "tables.py"

    places = {"PYTHONPATH": str(function), "MYPYPATH": str(function)}
    run("uv", "run", "mypy", str(benchmark), cwd=function, env=places)
    printed = run("uv", "run", "python", str(benchmark), cwd=function, env=places).stdout

    assert "200 partitions of a new table (median of 5)" in printed
    assert "100 in flight" in printed
    assert printed.split()[-4:] == ["missing", "or", "doubled", "0"]
