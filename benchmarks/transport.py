"""What the message transport costs: ours, the stock pair, and the floor, side by side.

The floor is the least that could be done: one POST whose handler makes one upload, then one
download. All use the same emulated storage and the same kind of function server, in turns.

Runs in the orchestrator's environment of a rendered project: `make benchmark`.
"""

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import statistics
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import dagster as dg
import requests
from common import FUNCTIONS, QUIET, make_client, print_machine, serve
from dagster_gcp.pipes import PipesGCSMessageReader
from gcp_pipes.orchestrator import PipesCloudFunctionClient
from google.cloud import storage
from local_cloud.cloud import storage_emulator
from local_cloud.project import TASKS

Body = Callable[[dg.OpExecutionContext], object]


def main() -> None:
    """Measure, and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=30, help="calls of ours and of the floor")
    arguments.add_argument("--stock-rounds", type=int, default=5, help="calls of the stock pair")
    arguments.add_argument("--lines", type=int, default=20_000, help="log lines of one call")
    options = arguments.parse_args()
    for task in ("noop", "many_logs", "clock"):
        shutil.copy(FUNCTIONS / f"{task}.py", TASKS / "tasks" / f"{task}.py")
    with ExitStack() as stack:
        os.environ.update(stack.enter_context(storage_emulator()))
        urls = {
            name: stack.enter_context(serve(source))
            for name, source in {
                "empty": FUNCTIONS / "empty.py",
                "floor": FUNCTIONS / "floor.py",
                "stock": FUNCTIONS / "stock.py",
                "ours": FUNCTIONS / "ours.py",
                "main.py": TASKS / "main.py",  # ours, with its two log lines
            }.items()
        }
        quiet = stack.enter_context(serve(TASKS / "main.py", FORWARD_OUTPUT="false"))
        print_machine()
        measure_calls(urls, options.rounds, options.stock_rounds)
        measure_output(urls["main.py"], quiet, 10 * options.rounds)
        measure_first_line(urls["main.py"])
        measure_lines(urls["main.py"], options.lines)


def measure_calls(urls: dict[str, str], rounds: int, stock_rounds: int) -> None:
    """Time calls that do nothing: whole, and within the function."""
    bucket = storage.Client().bucket(os.environ["MESSAGES_BUCKET"])
    session = requests.Session()
    session.trust_env = False
    client = make_client()
    whole: dict[str, list[float]] = {name: [] for name in ("floor", "ours", "main.py", "stock")}
    billed: dict[str, list[float]] = {name: [] for name in urls}

    def post(name: str, event: Any, path: str = "/") -> None:
        started = time.monotonic()
        session.post(urls[name] + path, json=event).raise_for_status()
        billed[name].append(time.monotonic() - started)

    def floor(context: dg.OpExecutionContext) -> None:
        name = uuid.uuid4().hex
        post("floor", {}, f"/?name={name}")
        bucket.blob(name).download_as_bytes()

    def run(name: str, context: dg.OpExecutionContext) -> None:
        done = client.run(context=context, function_url=urls[name], event={"task": "noop"})
        billed[name].append(float(str(done.metadata["cloud_function_seconds"].value)))

    def stock(context: dg.OpExecutionContext) -> None:
        reader = PipesGCSMessageReader(bucket=bucket.name, client=bucket.client)
        with dg.open_pipes_session(
            context=context,
            message_reader=reader,  # one reader a call: it loses all messages of a second one
            context_injector=dg.PipesEnvContextInjector(),
        ) as opened:
            post("stock", opened.get_bootstrap_env_vars())

    def calls(context: dg.OpExecutionContext) -> None:
        each_round: dict[str, Body] = {
            "floor": floor,
            "ours": partial(run, "ours"),
            "main.py": partial(run, "main.py"),
        }
        for call in each_round.values():  # warmed up: connections and imports
            call(context)
        for _ in range(rounds):
            post("empty", {})
            for name, call in each_round.items():
                whole[name].append(timed(call, context))
        for _ in range(stock_rounds):
            whole["stock"].append(timed(stock, context))

    run_as_op(calls)
    middle = {name: statistics.median(values) for name, values in whole.items()}
    inside = {name: statistics.median(values) for name, values in billed.items()}
    added = {name: inside[name] - inside["empty"] for name in middle}
    print(f"\nA call that does nothing (medians of {rounds}; of the stock pair, {stock_rounds})\n")
    print(f"{'':8}{'whole call':>14}{'in function':>14}{'added there':>14}")
    for name in middle:
        figures = (middle[name], inside[name], added[name])
        print(f"{name:8}" + "".join(f"{1000 * figure:11.1f} ms" for figure in figures))
    print(f"\nours / floor            {middle['ours'] / middle['floor']:8.2f}")
    print(f"stock / ours            {middle['stock'] / middle['ours']:8.1f}")
    print(f"stock / ours, added     {added['stock'] / added['ours']:8.1f}")


def measure_output(forwarding: str, quiet: str, rounds: int) -> None:
    """Time calls that print nothing, with and without what brings to Dagster what they print."""
    client = make_client()
    seconds: dict[str, list[float]] = {forwarding: [], quiet: []}

    def calls(context: dg.OpExecutionContext) -> None:
        def call(url: str, context: dg.OpExecutionContext) -> None:
            client.run(context=context, function_url=url, event={"task": "noop"})

        for _ in range(rounds):
            for url in random.sample(list(seconds), len(seconds)):
                seconds[url].append(timed(partial(call, url), context))

    run_as_op(calls)
    middle = {url: statistics.median(times) for url, times in seconds.items()}
    print(f"\nA call that prints nothing (medians of {rounds})\n")
    print(f"output forwarded        {1000 * middle[forwarding]:8.1f} ms")
    print(f"FORWARD_OUTPUT=false    {1000 * middle[quiet]:8.1f} ms")
    print(f"ratio                   {middle[forwarding] / middle[quiet]:8.3f}")


def measure_first_line(url: str, rounds: int = 20) -> None:
    """Time how long a log line takes from the running function into the event log."""
    client = make_client()

    def call(context: dg.OpExecutionContext) -> None:
        for _ in range(rounds):
            client.run(context=context, function_url=url, event={"task": "clock"})

    _, logged = run_as_op(call)
    written = ((entry.timestamp, entry.user_message) for entry in logged)
    lags = [stored - float(text.split()[1]) for stored, text in written if "clock" in text]
    print(f"\nA log line of a running function, until it is in the event log ({rounds} calls)\n")
    print(f"median                  {statistics.median(lags):8.2f} s")
    print(f"longest                 {max(lags):8.2f} s")


def measure_lines(url: str, lines: int) -> None:
    """Time a call that logs many lines: with all of them in the event log, and with the limit."""
    print(f"\nA call that logs {lines} lines\n")
    after = {}
    for name, limit in (("all in the event log", lines + 2), ("with the limit", None)):
        client = make_client() if limit is None else make_client(max_log_lines=limit)
        ended = 0.0

        def call(context: dg.OpExecutionContext, client: PipesCloudFunctionClient = client) -> None:
            nonlocal ended
            event = {"task": "many_logs", "lines": lines}
            started = time.monotonic()
            done = client.run(context=context, function_url=url, event=event)
            inside = float(str(done.metadata["cloud_function_seconds"].value))
            ended = time.monotonic() - started - inside

        beyond = io.StringIO()
        with contextlib.redirect_stderr(beyond):  # where a run has its compute logs
            _, logged = run_as_op(call)
        after[name] = ended
        said = [entry.user_message for entry in logged] + re.findall("line .*", beyond.getvalue())
        arrived = [message for message in said if re.fullmatch(r"line \d+", message)]
        in_order = arrived == [f"line {number}" for number in range(lines)]
        print(f"{name:24}{ended:8.1f} s after the function has ended; all, in order: {in_order}")
    before, now = after.values()
    print(f"ratio                   {before / now:8.1f}")


def timed(body: Body, context: dg.OpExecutionContext) -> float:
    """Seconds that `body` takes."""
    started = time.monotonic()
    body(context)
    return time.monotonic() - started


def run_as_op(body: Body) -> tuple[float, list[dg.EventLogEntry]]:
    """Run `body` in an op of a real run; return its seconds and what the run logged."""
    seconds = 0.0

    @dg.op
    def measured(context: dg.OpExecutionContext) -> None:
        nonlocal seconds
        seconds = timed(body, context)

    @dg.job
    def job() -> None:
        measured()

    with dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance:
        result = job.execute_in_process(instance=instance, run_config=QUIET)
        logged = [
            entry for entry in instance.all_logs(result.run_id) if entry.dagster_event is None
        ]
    return seconds, logged


if __name__ == "__main__":
    main()
