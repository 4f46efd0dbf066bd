"""How long partitions take that are written at once, and whether each is there once.

Prints the median of the rounds, beside the same partitions written one after another, and the
longest write, which must stay below the bound of all attempts. Fails if a partition is not there,
or is there twice.

Runs in the cloud function's environment of a rendered project: `make benchmark`.
"""

import argparse
import inspect
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import deltalake
import polars as pl
from lake import read_table, write_partition

ROWS = 3  # of each partition: what takes time is the commit
BOUND = inspect.signature(write_partition).parameters["timeout"].default


def main() -> None:
    """Measure, and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--partitions", type=int, default=200)
    arguments.add_argument("--in-flight", type=int, default=100)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    keys = [f"{number:05}" for number in range(options.partitions)]
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, deltalake {deltalake.__version__}"
    )
    one_by_one, _, _ = write_all(keys, in_flight=1)
    rounds = [write_all(keys, options.in_flight) for _ in range(options.rounds)]
    print(f"\n{len(keys)} partitions of a new table (median of {len(rounds)})\n")
    print(f"one after another       {one_by_one:8.1f} s")
    in_flight = f"{options.in_flight} in flight"
    print(f"{in_flight:23} {statistics.median(seconds for seconds, _, _ in rounds):8.1f} s")
    print(f"longest write           {max(longest for _, longest, _ in rounds):8.1f} s of {BOUND} s")
    wrong = [key for _, _, wrong in rounds for key in wrong]
    print(f"missing or doubled      {len(wrong):8}")
    sys.exit(bool(wrong))


def write_all(keys: list[str], in_flight: int) -> tuple[float, float, list[str]]:
    """Seconds that all took, and the longest write; and the keys that are not there once."""
    with tempfile.TemporaryDirectory() as folder:
        location = f"{folder}/table"

        def write(key: str) -> float:
            start = time.perf_counter()
            rows = pl.DataFrame({"key": [key] * ROWS, "number": range(ROWS)})
            write_partition(rows, location, column="key", value=key)
            return time.perf_counter() - start

        start = time.perf_counter()
        with ThreadPoolExecutor(in_flight) as pool:
            longest = max(pool.map(write, keys))
        seconds = time.perf_counter() - start
        there = dict(read_table(location).group_by("key").len().iter_rows())
    return seconds, longest, [key for key in keys if there.get(key) != ROWS]


if __name__ == "__main__":
    main()
