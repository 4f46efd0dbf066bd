"""What `just demo` materializes, and that it stops what it has started."""

import os
import random
import signal
import threading
from pathlib import Path

import dagster as dg
import psutil
import pytest
from local_cloud.materialize_all import runs
from local_cloud.processes import interrupted_once, run_to_end


def test_the_local_cloud_skips_an_asset_until_it_has_a_partition() -> None:
    shops = dg.DynamicPartitionsDefinition(name="shops")

    @dg.asset(partitions_def=shops)
    def sales() -> None: ...

    @dg.asset
    def people() -> None: ...

    definitions = dg.Definitions([people, sales])
    with dg.DagsterInstance.ephemeral() as instance:
        before = list(runs(definitions, instance))
        instance.add_dynamic_partitions("shops", ["Utrecht", "Delft"])
        after = list(runs(definitions, instance))

    assert before == [([people.key], [])]
    assert after == [*before, ([sales.key], ["Delft"])]


def test_a_process_whose_start_is_interrupted_is_stopped(tmp_path: Path) -> None:
    """The signal comes at any moment of the start, which takes some milliseconds."""
    seconds = f"30.{random.randrange(10**9)}"  # by it the processes of this test are known

    def start_and_interrupt() -> None:
        interrupt = threading.Timer(random.uniform(0, 0.004), os.kill, (os.getpid(), signal.SIGINT))
        with interrupted_once():
            interrupt.start()
            run_to_end("sleep", ["sleep", seconds], environment={}, directory=tmp_path)

    for _ in range(50):
        with pytest.raises(KeyboardInterrupt):
            start_and_interrupt()

    left = [child for child in psutil.Process().children() if seconds in child.cmdline()]
    assert left == []
