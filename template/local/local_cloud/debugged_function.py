"""The Functions Framework, with a debugger listening in the process that runs the tasks.

`breakpoint()` in a task waits for the debugger, in `just dev` with and without `--debug`.
"""

import os
import runpy
import sys
import threading

from local_cloud.debugging import listen, wait_at_breakpoint

FUNCTION_PORT = 5678  # as in the editor's launch configuration
FURTHER_FUNCTIONS_PORT = 5680  # of the second function, and so on
HOOK = {"PYTHONBREAKPOINT": f"{wait_at_breakpoint.__module__}.{wait_at_breakpoint.__name__}"}
"""The variable that makes `breakpoint()` call `wait_at_breakpoint`."""


if __name__ == "__main__":
    # The server forks the process that runs the tasks.
    os.register_at_fork(after_in_child=lambda: threading.Timer(0.1, listen).start())
    sys.argv[0] = "functions-framework"
    runpy.run_module("functions_framework", run_name="__main__")
