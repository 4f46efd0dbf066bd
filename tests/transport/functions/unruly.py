"""A task that does what tasks of users do, and should rather not."""

import argparse
import contextlib
import contextvars
import ctypes
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dagster_pipes import PipesContext
from gcp_pipes.external import Event


class Unprintable:
    """It cannot even be shown."""

    def __repr__(self) -> str:
        """Fail."""
        raise ValueError("not to be shown")


class UnprintableError(Exception):
    """It cannot be shown either."""

    def __str__(self) -> str:
        """Fail."""
        raise ValueError("not to be shown")


class EmptyError(Exception):
    """It counts as false."""

    def __len__(self) -> int:
        """Nothing is in it."""
        return 0


EXITS: dict[str, Callable[[], Any]] = {
    "exit 0": lambda: sys.exit(0),
    "exit 1": lambda: sys.exit("no more people"),
    "exit 3": lambda: sys.exit(3),
    "exit 4": lambda: sys.exit(4),
    "argparse": lambda: argparse.ArgumentParser().parse_args(["--no-such-option"]),
    "interrupt": lambda: _raise(KeyboardInterrupt()),
    "generator": lambda: _raise(GeneratorExit()),
    "iteration": lambda: _raise(StopIteration()),
    "unprintable": lambda: _raise(UnprintableError()),
    "empty": lambda: _raise(EmptyError()),
    "recursion": lambda: _recur(),
    "syntax": lambda: compile("1 +", "elsewhere.py", "exec"),
}


def run(pipes: PipesContext, event: Event) -> None:
    """Do what the event says, and report how it went."""
    partition = pipes.partition_key if pipes.is_partition_step else None
    if "exit" in event and partition == event.get("exiting_partition"):
        EXITS[event["exit"]]()
    metadata = {}
    for name in event.get("do", []):
        metadata[name] = globals()[f"do_{name}"](pipes, event)
    if event.get("report", True):
        pipes.report_asset_materialization(metadata=metadata)


def do_sleep(pipes: PipesContext, event: Event) -> None:
    """Sleep within one call, of which an exception does not end it; then try to go on."""
    seconds = event["seconds"]
    with contextlib.suppress(BaseException):
        time.sleep(seconds)
    try:
        pipes.log.info("too late")
    except Exception as error:
        Path(event["file"]).write_text(str(error))


def do_nap(pipes: PipesContext, event: Event) -> None:
    """Sleep for a moment."""
    time.sleep(0.2)


def do_wait(pipes: PipesContext, event: Event) -> None:
    """Wait in short steps, so that an exception ends it."""
    while True:
        time.sleep(0.01)


def do_fork(pipes: PipesContext, event: Event) -> list[str]:
    """Log in a forked child; return what came of it."""
    _pipes.append(pipes)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        said = [pool.apply_async(_log_in_child).get(20)]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        said.append(pool.apply_async(_log_in_child).get(20))
    return said


def do_spawn(pipes: PipesContext, event: Event) -> list[int]:
    """Compute in spawned processes, and log in this one."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        squares = pool.map_async(abs, [-1, -2, -3]).get(60)
    pipes.log.info(f"squares {squares}")
    return squares


def do_faulty_records(pipes: PipesContext, event: Event) -> None:
    """Log with arguments that do not fit."""
    logging.getLogger("some.library").warning("%d rows", "many")
    logging.getLogger("some.library").warning("two %s %s", Unprintable())
    pipes.log.warning("%d columns", "few")
    pipes.log.info(Unprintable())


def do_levels(pipes: PipesContext, event: Event) -> None:
    """Log at levels that Dagster does not know."""
    logging.addLevelName(26, "NOTICE")
    logging.addLevelName(logging.CRITICAL, "ALARM")
    for level in (1, 5, 14, 25, 26, 35, 49, 70):
        pipes.log.log(level, f"level {level}")
    logging.getLogger("some.library").log(36, "library level 36")
    try:
        raise KeyError("rows")
    except KeyError:
        pipes.log.exception("no such column")


def do_threads(pipes: PipesContext, event: Event) -> None:
    """Log, warn and fail in threads."""
    text = f"{pipes.partition_key} " if pipes.is_partition_step else ""

    def work(kind: str) -> None:
        time.sleep(event.get("pause", 0))
        logging.getLogger("some.library").info(f"{text}{kind} logs")
        warnings.warn(f"{text}{kind} warns", stacklevel=1)
        print(f"{text}{kind} prints")
        raise ValueError(f"{text}{kind} fails")

    context = contextvars.copy_context()
    for thread in (
        threading.Thread(target=work, args=("plain thread",), name="a plain thread"),
        threading.Thread(target=context.run, args=(work, "context thread")),
    ):
        thread.start()
        thread.join()


def do_print(pipes: PipesContext, event: Event) -> None:
    """Print in all the ways that there are."""
    text = f"{pipes.partition_key} " if pipes.is_partition_step else ""
    for number in range(event.get("lines", 3)):
        print(f"{text}line", number)
        time.sleep(event.get("pause", 0))
    print(f"{text}error", file=sys.stderr)
    if event.get("natively"):
        os.write(1, b"from a descriptor\n")
        os.write(2, b"from an error descriptor\n")
        ctypes.CDLL(None).puts(b"from C")
        subprocess.run(["echo", "from a child"], check=True)
        sys.stdout.buffer.write("from bytes ž\n".encode())
    print(f"{text}without an end", end="")


def do_die(pipes: PipesContext, event: Event) -> None:
    """Write last words, and end the process."""
    os.write(2, b"last words\n")
    os._exit(1)


def do_large_native_output(pipes: PipesContext, event: Event) -> None:
    """Print three mebibytes from C, without ever letting go of Python's lock."""
    puts = ctypes.PyDLL(None).puts
    for _ in range(3 * 1024):
        puts(b"x" * 1023)


def do_log_lines(pipes: PipesContext, event: Event) -> None:
    """Log as many lines as the event says."""
    for number in range(event["lines"]):
        pipes.log.info(f"line {number}")


def _raise(error: BaseException) -> None:
    raise error


def _recur() -> None:
    _recur()


_pipes: list[PipesContext] = []


def _log_in_child() -> str:
    logging.getLogger("some.library").warning("a child logs")
    print("a child prints", flush=True)
    try:
        _pipes[-1].log.info("a child says")
    except Exception as error:
        return f"refused: {error}"
    return "sent"
