"""Runs programs that must not be killed halfway: Terraform and Helm."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress


def run_to_end(
    command: Sequence[str], *, text: str = "", environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a program to its end, which Ctrl-C interrupts, but does not kill.

    Args:
        command: The program and its arguments.
        text: What it reads.
        environment: Its environment variables; those of this process by default.

    Returns:
        The exit status, and what it printed as errors.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and the program has ended.
    """
    errors = []
    interruptions = []
    # The terminal interrupts the program, too.
    before = signal.signal(signal.SIGINT, lambda *_: interruptions.append(True))
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE if text else None,
            stderr=subprocess.PIPE,
            env=environment,
            encoding="utf-8",
            errors="replace",
        ) as program:
            if program.stdin:
                with suppress(BrokenPipeError), program.stdin:  # it may end without reading
                    program.stdin.write(text)
            for line in program.stderr or ():
                sys.stderr.write(line)
                errors.append(line)
    finally:
        signal.signal(signal.SIGINT, before)
    if interruptions:
        raise KeyboardInterrupt
    return program.returncode, "".join(errors)
