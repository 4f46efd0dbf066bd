"""Lets a debugger attach to a process of the local cloud, such as `just materialize`."""

import importlib
import os
import sys
import time
from contextlib import suppress

import debugpy

MATERIALIZE_PORT = 5679  # as in the editor's launch configurations
PORT = "DEBUG_PORT"  # the variable with the port to listen on

_PATIENCE = 120.0  # seconds to wait for a debugger


def listen() -> str:
    """Let debuggers attach to this process; return what to tell the user.

    Only one process can listen on the port. In a process that a task forks, nothing happens.
    """
    port = int(os.environ[PORT])
    with suppress(RuntimeError):  # it listens already, or the parent of this process does
        debugpy.listen(("127.0.0.1", port))
    sys.breakpointhook = wait_at_breakpoint  # instead of the one of debugpy
    return f"127.0.0.1:{port}. In VS Code, start the launch configuration with this port."


def wait_for_debugger() -> bool:
    """Wait for two minutes until a debugger is attached, and return whether one is."""
    deadline = time.monotonic() + _PATIENCE
    while not debugpy.is_client_connected() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(debugpy.is_client_connected())


def wait_at_breakpoint(*_: object) -> None:
    """Stop at a `breakpoint()` when a debugger is attached, for which this waits two minutes."""
    if not debugpy.is_client_connected():
        print(f"A breakpoint waits for a debugger at {listen()}", file=sys.stderr, flush=True)
    if not wait_for_debugger():
        print("No debugger was attached. The task continues.", file=sys.stderr, flush=True)
        return
    # The debugger in debugpy, whose own `breakpoint` would stop here.
    importlib.import_module("pydevd").settrace(
        suspend=True,
        trace_only_current_thread=True,
        patch_multiprocessing=False,
        stop_at_frame=sys._getframe().f_back,
    )
