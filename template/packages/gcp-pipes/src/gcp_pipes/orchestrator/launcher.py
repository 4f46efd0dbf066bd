"""What differs between the places where work can run: how it is launched, followed and cancelled.

A cloud function is one such place (`cloud_function.py`). All else is the same for each of them:
attempts and their messages (`call.py`), the rules by which a step succeeds (`outcome.py`), many
partitions, and what becomes of calls when Dagster crashes (`step_calls.py`).
"""

import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, TypeVar

import dagster as dg
from dagster_pipes import PipesContextData

from gcp_pipes.orchestrator.event import Event, to_json
from gcp_pipes.orchestrator.messages import CallMessageHandler
from gcp_pipes.protocol import (
    PROTOCOL_VERSION,
    REPLACES_PARAMETER,
    TIMEOUT_PARAMETER,
    VERSION_PARAMETER,
)

_End = TypeVar("_End")

_FIRST_DELAY = 0.5  # seconds before the first retry
_TIME_TO_END = 10.0  # seconds after the last message


class PipesCallError(dg.Failure):
    """A call failed. It fails the step."""


class Outcome(Enum):
    """What the launcher knows of an attempt when it waits no longer."""

    FINISHED = "It has finished."
    NOT_STARTED = "It did not start, or not yet. The call can be retried."
    UNKNOWN = "The connection was lost. It may be running, or have finished, or not started."


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, as far as its launcher knows.

    Attributes:
        outcome: What that means for the call.
        error: What went wrong; None if nothing did.
        seconds: How long the launcher waited.
        hint: What to do about the error.
        may_start_late: Whether an attempt that did not start may start after all.
        is_conflict: Whether it did nothing, since an earlier attempt of the call has started.
        is_refused: Whether further calls would be refused, too.
        logs_url: A page with its logs, if the launcher has learned it.
        successor: The key prefix of the attempt by which the platform has replaced this one, by a
            retry of its own; None if it has not.
    """

    outcome: Outcome
    error: str | None
    seconds: float
    hint: str = ""
    may_start_late: bool = False
    is_conflict: bool = False
    is_refused: bool = False
    logs_url: str | None = None
    successor: str | None = None

    @property
    def late_start(self) -> str:
        """What happened, if it has started after all."""
        return "It was rejected, but started later"

    def explain(self, what: str) -> str | None:
        """What went wrong, and what to do; None if nothing did.

        Args:
            what: What was launched, such as `cloud function`.
        """
        return (
            None if self.error is None else f"The {what} failed: {self.error} {self.hint}".strip()
        )

    def details(self) -> dict[str, str]:
        """What is known of the end, as text by name."""
        return {}


@dataclass(frozen=True)
class Launch:
    """An attempt to be launched.

    Attributes:
        event: The inputs of the task, from `Launcher.serialize`.
        session: The Pipes session.
        handler: Handles the messages.
        trace: The ID of the attempt's trace: 32 hexadecimal digits.
        timeout: How long the task may run, in seconds.
        replaces: The key prefixes of earlier attempts, which must not start any more.
    """

    event: bytes
    session: dg.PipesSession
    handler: CallMessageHandler
    trace: str
    timeout: float
    replaces: Sequence[str]

    @property
    def key_prefix(self) -> str:
        """The key prefix of the messages, which no other attempt has."""
        return str(self.session.message_reader_params["key_prefix"])

    @property
    def parameters(self) -> dict[str, Any]:
        """What the task needs to open Pipes, for a request."""
        parameters = {
            **self.session.get_bootstrap_env_vars(),
            TIMEOUT_PARAMETER: self.timeout,
            VERSION_PARAMETER: PROTOCOL_VERSION,
        }
        return {**parameters, REPLACES_PARAMETER: self.replaces} if self.replaces else parameters

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables."""
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in self.parameters.items()
        }

    def wait_for(self, find_end: Callable[[], _End | None], interval: float) -> _End | None:
        """Wait for the end of the attempt.

        Args:
            find_end: Returns how it has ended, or None.
            interval: How long to wait before each time that it is called, in seconds.

        Returns:
            What `find_end` returned; None if the timeout has passed, or if the messages say that
            there is nothing to wait for.
        """
        deadline = time.monotonic() + self.timeout
        while (end := find_end()) is None and time.monotonic() < deadline:
            if self.handler.finished.wait(interval):  # the end is near, or it is dead
                deadline = min(deadline, time.monotonic() + _TIME_TO_END)
                time.sleep(min(interval, 1.0))
            if self.handler.silence is not None:
                break
        return end


class Launcher(ABC):
    """Runs the calls of one step somewhere. Threads use it at the same time.

    Attributes:
        what: What it launches, for the event log.
        target_kind: What kind of thing `target` is, for the metadata of a call.
        error: Raised if a call fails.
        deploy: How to deploy the code that it launches, for errors.
        cancels_only_accepted: Whether no call can be cancelled before the messages of one have said
            that it can.
        target: What exactly it launches, such as a URL. It is part of what identifies a call.
        time_to_start: How long an attempt may take to send its first message, in seconds.
    """

    what: ClassVar[str]
    target_kind: ClassVar[str] = "target"
    error: ClassVar[type[PipesCallError]] = PipesCallError
    deploy: ClassVar[str] = "deploy it"
    cancels_only_accepted: ClassVar[bool] = False
    target: str
    time_to_start: float = 300.0

    def serialize(self, event: Event, context_data: PipesContextData) -> bytes:
        """The event as JSON, once for all attempts of a call.

        Args:
            event: The inputs of the task.
            context_data: The Pipes context.

        Raises:
            EventError: An input is not JSON serializable, or the event is too large.
        """
        return to_json(event)

    def expect(self, count: int) -> None:  # noqa: B027  # most launchers have no use for it
        """Learn how many attempts are about to be launched at the same time.

        Args:
            count: How many.
        """

    @abstractmethod
    def launch(self, launch: Launch) -> Ending:
        """Start an attempt, and wait until it has ended, or until its messages say so.

        Args:
            launch: The attempt.
        """

    @abstractmethod
    def cancel(self, calls: Sequence[Mapping[str, Any]], timeout: float) -> str | None:
        """Cancel calls, also those that have not started yet.

        Args:
            calls: For each, the `key_prefix` of its messages, and `next_chunk`, the number of the
                next one.
            timeout: How long that may take, in seconds.

        Returns:
            Why that failed, or None.
        """

    def is_launched(self, key_prefix: str) -> bool:
        """Whether an attempt that has sent no message is known to have been launched, and not over.

        By default, only the messages say so.

        Args:
            key_prefix: The key prefix of its messages.
        """
        return False

    def follow(self, launch: Launch) -> Ending | None:
        """Wait until an attempt has ended that a step made which has crashed, as in `launch`.

        Args:
            launch: The attempt, without its event.

        Returns:
            How it has ended; None if only the messages can say so, as by default.
        """
        return None

    def logs_url(self, trace: str, run_id: str) -> str | None:
        """A page with the logs of an attempt, or None.

        Args:
            trace: The ID of the attempt's trace.
            run_id: The ID of the run.
        """
        return None


def retry_delays(longest: float) -> Iterator[float]:
    """Seconds to wait before each retry: exponential backoff with jitter.

    Args:
        longest: The longest delay in seconds.
    """
    delay = _FIRST_DELAY
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311  # nothing to keep secret
        delay = max(min(2 * delay, longest), _FIRST_DELAY)
