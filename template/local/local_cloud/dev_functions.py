"""The functions in `just dev`: served at the same addresses, and started again after edits."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from local_cloud.debugged_function import FUNCTION_PORT, FURTHER_FUNCTIONS_PORT
from local_cloud.dev_target import DevTarget, Start, is_any_in
from local_cloud.functions import url_variable
from local_cloud.instance import choose_port
from local_cloud.project import GCP_PIPES, TASKS, task_folders
from local_cloud.served_function import ServedFunction


class DevFunctions(DevTarget):
    """All functions of the project.

    Args:
        start: Serves them without a reload.
        options: The options on the command line.
        usual: The ports that the functions have if they are free.

    Raises:
        SettingsError: Another process listens on a port that the user wants.
    """

    def __init__(self, start: Start, options: argparse.Namespace, usual: Iterator[int]) -> None:
        super().__init__(self._serve, options, usual)
        self._debug: bool = options.debug
        self._ports = _choose_ports(options, usual)
        self._functions: list[ServedFunction] = []

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add the ports of the function and of its debugger, and `--debug`.

        Args:
            parser: The parser of the command line.
        """
        parser.add_argument("--function-port", type=int, help="the port of the function")
        parser.add_argument(
            "--debug", action="store_true", help="let a debugger attach to the function at any time"
        )
        parser.add_argument("--debug-port", type=int, help="the port for the debugger")

    @property
    def addresses(self) -> Mapping[str, str]:
        """The addresses of further functions, and of the debuggers."""
        addresses = {}
        for function in self._functions:
            name = "" if function.folder == TASKS else f" {function.folder.name}"
            if name:
                addresses[f"Function{name}"] = function.settings[url_variable(function.folder)]
            if self._debug:
                addresses[f"Debugger{name}"] = f"127.0.0.1:{function.debug_port}"
        return addresses

    def follow_edits(self, paths: Sequence[Path]) -> None:
        """Restart each function that was edited, or has ended.

        Args:
            paths: The files that were edited.
        """
        for function in self._functions:
            if is_any_in(paths, (function.folder, GCP_PIPES)):
                function.reload()
            else:
                function.restart_if_ended()

    @contextmanager
    def _serve(self, storage: Mapping[str, str]) -> Iterator[dict[str, str]]:
        settings: dict[str, str] = {}
        with ExitStack() as stack:
            for folder, (port, debug_port) in self._ports.items():
                served = ServedFunction(folder, storage, port, debug_port, debug=self._debug)
                self._functions.append(stack.enter_context(served))
                settings |= served.settings
            yield settings


def _choose_ports(options: argparse.Namespace, usual: Iterator[int]) -> dict[Path, tuple[int, int]]:
    """The port of each function, and the port for its debugger. Options are for the first one."""
    port = choose_port("the function", "--function-port", options.function_port, next(usual))
    debug = choose_port("the debugger", "--debug-port", options.debug_port, FUNCTION_PORT)
    ports = {TASKS: (port, debug)}
    for number, folder in enumerate(task_folders()[1:]):
        name = f"the function {folder.name}"
        port = choose_port(name, "--function-port", None, next(usual))
        debug = choose_port(
            f"the debugger of {folder.name}", "--debug-port", None, FURTHER_FUNCTIONS_PORT + number
        )
        ports[folder] = (port, debug)
    return ports
