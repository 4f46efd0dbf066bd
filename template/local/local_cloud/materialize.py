"""Materializes one asset from the terminal: `just materialize ASSET`.

It runs in the orchestrator's environment, on the Dagster instance of `just dev`. If `just dev` is
running, it uses that local cloud, and the run is on that web page. Otherwise it starts a local
cloud of its own.
"""

import argparse
import importlib
import logging
import os
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg
from local_cloud.cloud import cloud_targets
from local_cloud.console import console, failed, json_object, show_log, show_report
from local_cloud.credentials import use
from local_cloud.instance import kept_storage, running_dev
from local_cloud.materialize_all import run_arguments
from local_cloud.processes import ProcessError, interrupted_once
from local_cloud.project import SettingsError, deployed_settings, root_module
from local_cloud.results import add, new_report

from gcp_pipes.components.yaml_errors import DefsYamlError

_POLL_INTERVAL = 0.1  # seconds between two reads of the event log


def main() -> int:
    """Materialize the asset, and return the exit status."""
    options = read_options()
    try:
        with interrupted_once(), dg.DagsterInstance.get() as instance:
            if options.debug:
                _wait_for_debugger()
            definitions = load_definitions()
            asset = _find_asset(definitions, options.asset)
            runs = _runs(asset, options, instance)
            with _settings(options.lake) as settings:
                use(settings)
                report = materialize(definitions, instance, asset.key, runs, options.config)
    except KeyboardInterrupt:
        failed("interrupted")
        return 130
    except (ProcessError, SettingsError, dg.DagsterInvalidConfigError) as error:
        failed(str(error))
        return 1
    show_report(report)
    return 1 if report["errors"] else 0


def load_definitions() -> dg.Definitions:
    """The orchestrator's definitions.

    Raises:
        SettingsError: There is an error in a `defs.yaml`.
    """
    try:
        definitions: dg.Definitions = importlib.import_module(f"{root_module()}.definitions").defs()
    except Exception as error:
        if isinstance(error.__cause__, DefsYamlError):  # an error of Python needs its traceback
            raise SettingsError(str(error.__cause__)) from error
        raise
    return definitions


def _wait_for_debugger() -> None:
    # Here, since their import takes long.
    import debugpy
    from local_cloud.debugging import MATERIALIZE_PORT, PORT, listen, wait_for_debugger

    os.environ[PORT] = str(MATERIALIZE_PORT)
    console.print(f"Waits for a debugger at {listen()}", markup=False)
    if not wait_for_debugger():
        raise SettingsError("No debugger was attached within two minutes.")
    debugpy.wait_for_client()  # until it has set its breakpoints


def read_options() -> argparse.Namespace:
    """The arguments and options on the command line."""
    parser = argparse.ArgumentParser(prog="just materialize", description="Materialize an asset.")
    parser.add_argument("asset", help="the key of the asset, such as visits or lake/visits")
    partitions = parser.add_mutually_exclusive_group()
    partitions.add_argument("--partition", metavar="KEY", help="one partition")
    partitions.add_argument("--partitions", metavar="A..B", help="the partitions from A to B")
    parser.add_argument(
        "--debug", action="store_true", help="wait for a debugger to attach to Dagster"
    )
    parser.add_argument(
        "--lake", metavar="DIR", help="a folder for the data lake, instead of a bucket"
    )
    parser.add_argument(
        "--config", type=json_object, default={}, help="the run's config for the asset, as JSON"
    )
    return parser.parse_args()


@contextmanager
def _settings(lake: str | None) -> Iterator[Mapping[str, str]]:
    """The settings of the running `just dev`, or of a local cloud that runs during the block."""
    dev = running_dev()
    if dev and lake:
        raise SettingsError("`just dev` is running, with a data lake of its own. Omit --lake.")
    if dev:
        console.print(f"Uses the running `just dev`: {dev['dagster']}", markup=False)
        yield dev["settings"] or deployed_settings()
    else:
        console.print("Starts a local cloud, since `just dev` is not running.", markup=False)
        with kept_storage(lake) as storage, cloud_targets(storage) as targets:
            yield {**storage, **targets}


def materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    asset_key: dg.AssetKey,
    runs: Sequence[Sequence[str]],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Materialize an asset, and print its log lines meanwhile.

    Args:
        definitions: The orchestrator's definitions.
        instance: The instance that stores the runs.
        asset_key: The asset.
        runs: The partitions of each run.
        config: The asset's config.

    Returns:
        What the runs left in the event log, as `new_report` describes it.
    """
    job = definitions.resolve_implicit_global_asset_job_def()
    node = definitions.resolve_assets_def(asset_key).node_def.name
    report = new_report()
    for partition_keys in runs:
        run_id = str(uuid.uuid4())
        with _printed_logs(instance, run_id):
            job.execute_in_process(
                run_config={
                    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                    "ops": {node: {"config": config}} if config else {},
                },
                instance=instance,
                raise_on_error=False,
                asset_selection=[asset_key],
                run_id=run_id,
                resources=_io_manager(definitions, instance),
                **run_arguments(partition_keys),
            )
        for entry in instance.all_logs(run_id):
            add(entry, report, partition_keys)
    return report


def _find_asset(definitions: dg.Definitions, name: str) -> Any:
    """The asset's node in the asset graph."""
    graph = definitions.resolve_asset_graph()
    key = dg.AssetKey.from_user_string(name)
    if not graph.has(key):
        names = ", ".join(sorted(each.to_user_string() for each in graph.executable_asset_keys))
        raise SettingsError(f"There is no asset {name!r}. The assets are: {names}.")
    return graph.get(key)


def _runs(asset: Any, options: argparse.Namespace, instance: dg.DagsterInstance) -> list[list[str]]:
    """The partitions of each run, which is one list without partitions if there are none."""
    first, _, last = (options.partitions or "").partition("..")
    first = options.partition or first
    if asset.partitions_def is None:
        if first:
            raise SettingsError(f"{options.asset} has no partitions.")
        return [[]]
    known = list(asset.partitions_def.get_partition_keys(dynamic_partitions_store=instance))
    if not first:
        example = f" such as --partition {known[-1]}" if known else ""
        raise SettingsError(f"{options.asset} has partitions. Choose one,{example}.")
    last = last if options.partitions else first
    for key in (first, last):
        if key not in known:
            raise SettingsError(
                f"{options.asset} has no partition {key!r}. It has {len(known)}"
                f"{f', from {known[0]} to {known[-1]}' if known else ''}."
            )
    keys = known[known.index(first) : known.index(last) + 1]
    if not keys:
        raise SettingsError(f"The partition {first!r} comes after {last!r}. Exchange them.")
    if asset.backfill_policy == dg.BackfillPolicy.single_run():
        return [keys]
    return [[key] for key in keys]


def _io_manager(definitions: dg.Definitions, instance: dg.DagsterInstance) -> Mapping[str, Any]:
    """The I/O manager of other runs, where Dagster would use memory."""
    if "io_manager" in (definitions.resources or {}):
        return {}
    return {"io_manager": dg.FilesystemIOManager(base_dir=instance.storage_directory())}


@contextmanager
def _printed_logs(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Print the log lines of a run during the block."""
    is_over = threading.Event()

    def follow() -> None:
        cursor = None
        is_last = False
        while not is_last:
            is_last = is_over.wait(_POLL_INTERVAL)
            page = instance.get_records_for_run(run_id, cursor)
            cursor = page.cursor
            for record in page.records:
                entry = record.event_log_entry
                if entry.dagster_event is None:
                    show_log(logging.getLevelName(entry.level), entry.user_message)

    thread = threading.Thread(target=follow, name="logs")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
