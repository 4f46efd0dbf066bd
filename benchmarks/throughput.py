"""How long a table of 100 MiB takes to write and to read, in a bucket and in a folder.

The bucket is in the storage emulator, behind the server of the data lake. Prints medians of rounds
in turn, and the bucket's time as a multiple of the folder's.

Runs in the cloud function's environment of a rendered project: `make benchmark`.
"""

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import deltalake
import polars as pl
from lake import read_table, write_table
from local_cloud.cloud import cloud_storage
from local_cloud.credentials import use

MEBIBYTE = 1 << 20


def main() -> None:
    """Measure, and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--mebibytes", type=int, default=100)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, deltalake {deltalake.__version__}"
    )
    rows = orders(options.mebibytes)
    with tempfile.TemporaryDirectory() as folder, cloud_storage(Path(folder, "buckets")) as storage:
        use(storage)
        places = {"bucket": f"{storage['LAKE_URI']}/orders", "folder": f"{folder}/lake/orders"}
        size = write_table(rows, places["folder"]).size_bytes  # this round also warms up
        write_table(rows, places["bucket"])
        writes: dict[str, list[float]] = {place: [] for place in places}
        reads: dict[str, list[float]] = {place: [] for place in places}
        for _ in range(options.rounds):
            for place, location in places.items():
                writes[place].append(seconds(write_table, rows, location))
                reads[place].append(seconds(read_table, location))
    print(f"\nA table of {size / MEBIBYTE:.0f} MiB (median of {options.rounds})\n")
    print("             bucket    folder     ratio")
    totals = {place: [*map(sum, zip(writes[place], reads[place], strict=True))] for place in places}
    for name, times in (("write", writes), ("read", reads), ("write, read", totals)):
        bucket, of_folder = (statistics.median(times[place]) for place in ("bucket", "folder"))
        print(f"{name:11}{bucket:6.2f} s {of_folder:7.2f} s {bucket / of_folder:9.1f}")


def orders(mebibytes: int) -> pl.DataFrame:
    """Orders that take about so much space in a table."""
    count = mebibytes * 33_000
    generator = random.Random(7)  # nothing secret
    ids = pl.int_range(count, eager=True)
    return pl.DataFrame(
        {
            "id": ids,
            "customer": pl.select(
                pl.format("customer-{}@example.com", ids.hash(1) % 100_000_000)
            ).to_series(),
            "amount": [generator.random() for _ in range(count)],
            "quantity": (ids.hash(2) % 100).cast(pl.Int64),
            "at": (ids.hash(3) % 10**15).cast(pl.Int64).cast(pl.Datetime("us")),
        }
    )


def seconds(function: Callable[..., object], *arguments: object) -> float:
    """How long a call of a function takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
