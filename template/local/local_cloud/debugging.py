"""Lets a debugger attach to the function and to `just materialize`.

`python -m local_cloud.debugging ...` is the Functions Framework, with a debugger listening in the
process that runs the tasks. `breakpoint()` in a task waits for the debugger, in `just dev` with and
without `--debug`.
"""

import importlib
import os
import runpy
import sys
import threading
import time
from contextlib import suppress

import debugpy

FUNCTION_PORT, MATERIALIZE_PORT = 5678, 5679  # as in the editor's launch configurations
FURTHER_FUNCTIONS_PORT = 5680  # of the second function, and so on
PORT = "DEBUG_PORT"  # the variable with the port to listen on
HOOK = {"PYTHONBREAKPOINT": f"{__name__}.wait_at_breakpoint"}
"""The variable that makes `breakpoint()` call `wait_at_breakpoint`."""

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
    # The debugger in debugpy, whose own `breakpoint` would stop in this function.
    importlib.import_module("pydevd").settrace(
        suspend=True,
        trace_only_current_thread=True,
        patch_multiprocessing=False,
        stop_at_frame=sys._getframe().f_back,
    )


if __name__ == "__main__":
    # The server forks the process that runs the tasks.
    os.register_at_fork(after_in_child=lambda: threading.Timer(0.1, listen).start())
    sys.argv[0] = "functions-framework"
    runpy.run_module("functions_framework", run_name="__main__")
