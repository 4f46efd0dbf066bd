"""What runs tasks in `just dev`."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

Start = Callable[[Mapping[str, str]], AbstractContextManager[dict[str, str]]]


class DevTarget:
    """What runs tasks in `just dev`, here without a reload: each task reads its files again.

    Args:
        start: Starts it, with the variables of the storage, and yields its own.
        options: The options on the command line.
        usual: The ports to listen on if they are free.
    """

    def __init__(self, start: Start, options: argparse.Namespace, usual: Iterator[int]) -> None:
        self.start = start

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add its options to those of `just dev`.

        Args:
            parser: The parser of the command line.
        """

    @property
    def addresses(self) -> Mapping[str, str]:
        """The addresses to print, by name, besides those that Dagster calls."""
        return {}

    def follow_edits(self, paths: Sequence[Path]) -> None:
        """Reload what was edited, and start again what has ended. Called once a second, or more.

        Args:
            paths: The files that were edited.
        """


def is_any_in(paths: Iterable[Path], folders: Iterable[Path]) -> bool:
    """Whether any of some files is in one of some folders.

    Args:
        paths: The files.
        folders: The folders.
    """
    return any(path.is_relative_to(folder) for path in paths for folder in folders)
