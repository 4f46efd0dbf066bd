"""One call of a cloud function: its attempts, its messages, and how it ended."""

import json
import logging
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import dagster as dg
import requests
from dagster_pipes import (
    DagsterPipesError,
    PipesContextData,
    PipesException,
    PipesMessage,
    PipesParams,
)

from gcp_pipes.orchestrator.auth import explain_auth_error
from gcp_pipes.orchestrator.context import StepContext
from gcp_pipes.orchestrator.dagster_internals import MessageHandler, metadata_map_from_external
from gcp_pipes.orchestrator.event import request_body
from gcp_pipes.orchestrator.http import (
    CloudFunctionResponse,
    Outcome,
    invoke_cloud_function,
    retry_delays,
    trace_headers,
)
from gcp_pipes.orchestrator.step_calls import CallHandle, LoggedLines
from gcp_pipes.orchestrator.urllib3_internals import interruptible
from gcp_pipes.orchestrator.urls import is_loopback
from gcp_pipes.protocol import (
    CAN_BE_CANCELLED,
    CANCEL_PARAMETER,
    HEARTBEAT_INTERVAL,
    LEVELS,
    OBSERVATION,
    REPLACES_PARAMETER,
    TIMEOUT_PARAMETER,
    nearest_level,
)

_MARGIN = 10.0  # seconds that a response may come after the function's timeout
_TIME_TO_START = 300.0  # seconds; Google Cloud stops waiting for an instance after 240
_MOST_BLOCKED = 10  # earlier attempts that a retry prevents from starting
_OPENED = "[pipes] external process successfully opened dagster pipes."  # Dagster logs it
_LEVELS = {name: number for number, name in LEVELS.items()}
_CONFLICT = 409  # the function's response to a retry of an attempt that has started
TIME_TO_CANCEL = 10.0  # seconds for the request that cancels, and then for the task to stop


@runtime_checkable
class ReaderAnywhere(Protocol):
    """A message reader that can read messages elsewhere, such as those of an earlier attempt."""

    def get_params(self) -> PipesParams:
        """Where the messages of a new call will be: it has a new `key_prefix`."""

    def reading_at(self, params: PipesParams) -> dg.PipesMessageReader:
        """A reader of the messages at another place."""

    def first_message(self, params: PipesParams) -> str | None:
        """The method of the first message there; None without one."""

    def age(self, params: PipesParams) -> float:
        """How long ago the first message was stored there, in seconds."""


class CloudFunctionMessageHandler(MessageHandler):
    """Dagster's message handler, which also records what the messages say of the call.

    Attributes:
        params: Where the messages are: what the message reader sends to the message writer.
        message_count: How many messages were received.
        chunk_count: How many chunks they were in.
        heartbeat_count: How many heartbeats were seen.
        opened_extras: The extras of the message `opened`; None before it is received.
        has_closed: Whether the message `closed` was received.
        exception: The exception in the message `closed`, or None.
        observations: The asset observations that the function reported.
        rejected: Why Dagster rejected messages, one text for each.
        lost: What is known of messages that were lost.
        is_followed: Whether the messages are those of an earlier attempt.
        logged: Lines that are in the log already; None if there are none.
        started: Set when the message `opened` or `closed` was received.
        finished: Set when the message `closed` was received, or the function counts as dead.
        silence: How long a dead function had shown no sign of life, in seconds; None for others.
        interrupt: Interrupts the request of the call, while there is one.
    """

    def __init__(
        self, context: StepContext, message_reader: dg.PipesMessageReader, max_log_lines: int
    ) -> None:
        super().__init__(context, message_reader)
        self._max_log_lines = max_log_lines
        self._log_lines = 0
        self.params: PipesParams = {}
        self.message_count = 0
        self.chunk_count = 0
        self.heartbeat_count = 0
        self.opened_extras: Mapping[str, Any] | None = None
        self.exception: PipesException | None = None
        self.observations: list[dg.AssetObservation] = []
        self.rejected: list[str] = []
        self.lost: list[str] = []
        self.is_followed = False
        self.logged: LoggedLines | None = None
        self.started = threading.Event()
        self.finished = threading.Event()
        self.has_closed = False
        self.silence: float | None = None
        self.interrupt: Callable[[], None] | None = None

    @contextmanager
    def handle_messages(self) -> Iterator[PipesParams]:
        """Read messages while the block runs."""
        with super().handle_messages() as self.params:
            yield self.params

    @property
    def has_opened(self) -> bool:
        """Whether the message `opened` was received."""
        return self.opened_extras is not None

    @property
    def can_be_cancelled(self) -> bool:
        """Whether the function accepts a request that cancels the call."""
        return bool(self.opened_extras and self.opened_extras.get(CAN_BE_CANCELLED))

    @property
    def heartbeat_interval(self) -> float | None:
        """How long the function stores nothing, at most, in seconds; None if it has not said so."""
        interval = (self.opened_extras or {}).get(HEARTBEAT_INTERVAL)
        return float(interval) if isinstance(interval, int | float) and interval > 0 else None

    def call_to_cancel(self) -> Mapping[str, Any]:
        """The call, for a request that cancels it."""
        call = {**self.params, "next_chunk": self.chunk_count + 1}
        if self.heartbeat_interval:
            call["next_heartbeat"] = self.heartbeat_count + 1
        return call

    def presume_dead(self, silence: float) -> None:
        """Wait no longer for a function that has shown no sign of life, and for its response.

        Args:
            silence: For how long, in seconds.
        """
        self.silence = silence
        self.finished.set()
        if self.interrupt is not None:
            self.interrupt()

    def read_at(self, params: PipesParams) -> None:
        """Read the messages at a certain place, such as those of an earlier attempt."""
        if isinstance(self._message_reader, ReaderAnywhere):
            self._message_reader = self._message_reader.reading_at(params)

    def first_message(self, params: PipesParams) -> str | None:
        """The method of the first message of an earlier attempt; None without one."""
        if not isinstance(self._message_reader, ReaderAnywhere):
            return None
        try:
            return self._message_reader.first_message(params)
        except Exception:  # the call must not be made again; reading its messages reports the error
            return "opened"

    def age(self, params: PipesParams) -> float:
        """How long ago an earlier attempt has started, in seconds; 0 if that is unknown."""
        try:
            assert isinstance(self._message_reader, ReaderAnywhere)  # noqa: S101  # it has messages
            return self._message_reader.age(params)
        except Exception:  # as above
            return 0.0

    def handle_message(self, message: PipesMessage) -> None:
        """Report the message to the run, and record what it says of the call."""
        self.report_or_reject(message)
        self.record(message)

    def record(self, message: PipesMessage) -> None:
        """Record what the message says of the call."""
        self.message_count += 1
        params = message["params"] or {}
        if message["method"] == "opened":
            self.opened_extras = params.get("extras") or {}
            self.started.set()
        elif message["method"] == "closed":
            self.exception = params.get("exception")
            self.has_closed = True
            self.started.set()
            self.finished.set()

    def report_or_reject(self, message: PipesMessage) -> None:
        """Report the message to the run. If Dagster rejects it, log and record why."""
        try:
            self.report(message)
        except Exception as error:
            self.rejected.append(
                f"Dagster rejects what the task reported by {message['method']}: {error} "
                f"Correct it in the task. It reported {message['params']!r:.500}."
            )
            self._context.log.error(self.rejected[-1])

    def report(self, message: PipesMessage) -> None:
        """Report the message to the run."""
        params = message["params"] or {}
        match message["method"]:
            case "opened" if self._is_logged("INFO", _OPENED):
                pass
            case "log":
                self._log(_level(params.get("level")), params["message"])
            case "report_custom_message" if is_observation(params["payload"]):
                self.observations.append(_observation(**params["payload"][OBSERVATION]))
            case "report_asset_materialization" | "report_asset_check":
                _check_metadata(params.get("metadata") or {})
                super().handle_message(message)
            case _:
                super().handle_message(message)

    def _log(self, level: str, text: str) -> None:
        """Log a line in the run. Lines above the limit go to the compute logs of the step."""
        self._log_lines += 1
        if self._is_logged(level, text):
            return
        if self._log_lines <= self._max_log_lines:
            self._context.log.log(level, text)
            return
        if self._log_lines == self._max_log_lines + 1:
            self.warn(
                f"The cloud function has logged {self._max_log_lines} lines. Further lines are in "
                "the compute logs of this step, in stderr. To change the limit, set "
                "`max_log_lines` of the client."
            )
        sys.stderr.write(f"{level} - {text}\n")

    def _is_logged(self, level: str, text: str) -> bool:
        """Whether a line is in the log already, from before the process of the step crashed."""
        return self.logged is not None and self.logged.take(_LEVELS[level], text)

    def warn(self, text: str) -> None:
        """Log a warning in the run."""
        self._context.log.warning(text)


@dataclass(frozen=True)
class Attempt:
    """One attempt to call the function, after all its messages have been read.

    Attributes:
        function_url: The function's URL.
        number: The attempt's number, from 1.
        session: The Pipes session, with what the function reported.
        handler: What the messages said of the call.
        response: The function's response, or that there was none.
        trace: The ID of the trace that the request and the function's logs belong to.
        auth_error: Why the function rejected the credentials, or None.
        seconds: How long it took, with the reading of the last messages.
    """

    function_url: str
    number: int
    session: dg.PipesSession
    handler: CloudFunctionMessageHandler
    response: CloudFunctionResponse
    trace: str
    auth_error: str | None
    seconds: float

    @property
    def has_started(self) -> bool:
        """Whether the task may have run. The function sends `opened` before it runs the task."""
        return (
            self.response.outcome is not Outcome.NOT_STARTED
            or self.handler.has_opened
            or bool(self.handler.lost)
        )


@dataclass(frozen=True)
class EarlierAttempt:
    """An attempt that may be running, or may start late.

    Attributes:
        number: The attempt's number, from 1.
        params: Where its messages are.
        response: Its response.
        has_crashed: Whether the process that made it has crashed, in another execution of the step.
    """

    number: int
    params: PipesParams
    response: CloudFunctionResponse
    has_crashed: bool = False


class CloudFunctionCaller:
    """Makes the calls of one step; many can be in flight at the same time."""

    def __init__(
        self,
        context: StepContext,
        function_url: str,
        http_session: requests.Session,
        context_injector: dg.PipesContextInjector,
        *,
        timeout: float,
        retry_timeout: float,
        forward_termination: bool,
    ) -> None:
        self._function_url = function_url
        self._context = context
        self._http_session = http_session
        self._context_injector = context_injector
        self._timeout = timeout
        self._retry_timeout = retry_timeout
        self._forward_termination = forward_termination
        self._cancelled = threading.Event()
        self._lock = threading.Lock()  # guards the attributes below
        self._in_flight: set[CloudFunctionMessageHandler] = set()
        self._last_finished = 0.0  # when the last attempt finished that had started the task
        self._can_be_cancelled = False

    def call(
        self,
        event: bytes,
        context_data: PipesContextData,
        make_handler: Callable[[], CloudFunctionMessageHandler],
        handle: CallHandle | None = None,
    ) -> Attempt:
        """Call the function, and wait until it finishes.

        A call that did not start is retried until `retry_timeout` has passed, and for longer while
        another call of the step is running, since the function may have no free instance. One that
        may have started is not retried: if its response is lost, the function's messages say how it
        ended.

        An attempt may start late, after Google has rejected its request. So before a retry, and
        before the call fails, we look for the first messages of such attempts. The retry prevents
        them from starting.

        The same holds for attempts of an earlier execution of the step, whose process has crashed.
        Only if they have failed is the call made again.

        Args:
            event: The event, as JSON.
            context_data: The Pipes context.
            make_handler: Makes the message handler of an attempt.
            handle: The key prefixes of this call, and those of the same call in earlier executions
                of the step; None if they are not recorded.
        """
        first_started = time.monotonic()
        earlier = list(_crashed_attempts(handle))
        if followed := self._follow_started(earlier, context_data, make_handler, handle):
            return followed
        for number, delay in enumerate(retry_delays(self._retry_timeout / 4), start=1):
            handler = make_handler()
            if handle is not None:
                handler.read_at(handle.params_of(number))
            attempt = self._attempt(
                number,
                context_data,
                handler,
                lambda session, trace: self._post(event, session, trace, earlier),
            )
            is_blocked = (
                attempt.response.status == _CONFLICT
                and not attempt.handler.has_opened
                and len(earlier) > 0
            )
            if attempt.has_started and not is_blocked:
                return attempt
            if attempt.response.may_start_late:
                earlier.append(EarlierAttempt(number, attempt.handler.params, attempt.response))
                _keep_latest(earlier)
            may_retry = self._may_retry(first_started, delay)
            if may_retry:
                if not is_blocked:
                    attempt.handler.warn(
                        f"Attempt {number} did not reach the cloud function: "
                        f"{attempt.response.error} Retrying in {delay:.1f} s."
                    )
                self._cancelled.wait(delay)
            if followed := self._follow_started(earlier, context_data, make_handler, handle):
                return followed
            if not may_retry:
                break
        if self._forward_termination or not self._cancelled.is_set():
            self._send_cancellation([{**each.params, "next_chunk": 1} for each in earlier])
        return attempt

    def cancel(self) -> float:
        """Start no further attempt, and send a request that cancels the calls in flight.

        If termination is not forwarded, they go on.

        Returns:
            How long to wait for their last messages, in seconds.
        """
        self._cancelled.set()
        if not self._forward_termination:
            return 0.0
        with self._lock:
            handlers = list(self._in_flight)
        self._cancel(handlers)
        return TIME_TO_CANCEL

    def _cancel(self, handlers: Sequence[CloudFunctionMessageHandler]) -> None:
        """Cancel calls, by their handlers."""
        with self._lock:
            self._can_be_cancelled |= any(each.can_be_cancelled for each in handlers)
        self._send_cancellation([each.call_to_cancel() for each in handlers])

    def _send_cancellation(self, calls: Sequence[Mapping[str, Any]]) -> None:
        """Cancel calls, also those that have not started yet.

        Only functions that are known to accept such a request get it. The right to call the
        function is enough.
        """
        if not calls or not self._can_be_cancelled:
            return
        response = invoke_cloud_function(
            self._http_session,
            url=self._function_url,
            data=json.dumps({CANCEL_PARAMETER: calls}).encode(),
            headers={},
            timeout=TIME_TO_CANCEL,
        )
        if response.error:
            self._context.log.warning(f"Could not cancel the cloud function: {response.error}")

    def _follow_started(
        self,
        earlier: list[EarlierAttempt],
        context_data: PipesContextData,
        make_handler: Callable[[], CloudFunctionMessageHandler],
        handle: CallHandle | None,
    ) -> Attempt | None:
        """Follow an earlier attempt that has started, until it has finished.

        One of a process that has crashed is removed if it has failed, since the step is executed
        again to do the work.
        """
        while started := self._find_started(earlier, make_handler):
            handler = make_handler()
            if handle is not None:
                handler.logged = handle.calls.logged
            attempt = self._follow(started, context_data, handler)
            is_over = not started.has_crashed or self._cancelled.is_set()
            if is_over or not _must_be_made_again(attempt):
                return attempt
            if not (handler.has_closed or handler.silence):  # it may still be running
                self._cancel([handler])
            earlier.remove(started)
            handler.warn("The call that this step had made before has failed, so it is made again.")
        return None

    def _find_started(
        self,
        earlier: list[EarlierAttempt],
        make_handler: Callable[[], CloudFunctionMessageHandler],
    ) -> EarlierAttempt | None:
        """The attempt that has started after all. Those that cannot start any more are removed."""
        for attempt in list(earlier):
            if self._cancelled.is_set():
                return None
            match make_handler().first_message(attempt.params):
                case "opened":
                    return attempt
                case str():  # from a retry, or from a cancellation
                    earlier.remove(attempt)
        return None

    def _follow(
        self,
        earlier: EarlierAttempt,
        context_data: PipesContextData,
        handler: CloudFunctionMessageHandler,
    ) -> Attempt:
        """Read the messages of an earlier attempt, until it has finished."""
        handler.read_at(earlier.params)
        handler.is_followed = True
        error = f"Google responded {earlier.response.status}, but the function started later"
        seconds = 0.0
        if earlier.has_crashed:
            error = "The process of this step crashed after it had made this call"
            seconds = handler.age(earlier.params)
        response = replace(earlier.response, outcome=Outcome.UNKNOWN, error=error, seconds=seconds)
        return self._attempt(earlier.number, context_data, handler, lambda *_: response)

    def _attempt(
        self,
        number: int,
        context_data: PipesContextData,
        handler: CloudFunctionMessageHandler,
        post: Callable[[dg.PipesSession, str], CloudFunctionResponse],
    ) -> Attempt:
        """Make one attempt, under a key prefix of its own, and read all its messages."""
        start = time.monotonic()
        response = CloudFunctionResponse(Outcome.NOT_STARTED, None, "No request was sent.", 0.0)
        try:
            with self._open_session(context_data, handler) as session, self._track(handler):
                try:
                    trace = _trace(session.message_reader_params)
                    with interruptible() as handler.interrupt:
                        response = post(session, trace)
                    if response.outcome is Outcome.UNKNOWN:
                        self._wait_for_messages(handler, response)
                    if handler.silence is not None:  # if it is alive after all, it has to stop
                        self._cancel([handler])
                except BaseException:  # the run is being terminated
                    handler.finished.wait(self.cancel())
                    raise
        except DagsterPipesError as error:  # messages are missing, or could not be parsed
            handler.lost.append(str(error))
        auth_error = None
        if response.status in (401, 403):
            auth_error = explain_auth_error(self._http_session, response.status)
        seconds = time.monotonic() - start
        attempt = Attempt(
            self._function_url, number, session, handler, response, trace, auth_error, seconds
        )
        if response.outcome is Outcome.UNKNOWN and handler.has_closed:
            handler.warn(f"The response was lost ({response.error}). The messages are complete.")
        with self._lock:
            self._can_be_cancelled |= handler.can_be_cancelled
            if attempt.has_started:
                self._last_finished = time.monotonic()
        return attempt

    def _post(
        self,
        event: bytes,
        session: dg.PipesSession,
        trace: str,
        earlier: Sequence[EarlierAttempt],
    ) -> CloudFunctionResponse:
        if self._cancelled.is_set():
            return CloudFunctionResponse(Outcome.NOT_STARTED, None, "The step was cancelled.", 0.0)
        parameters = {**session.get_bootstrap_env_vars(), TIMEOUT_PARAMETER: self._timeout}
        if earlier:
            latest = sorted(earlier, key=lambda each: each.has_crashed)[-_MOST_BLOCKED:]
            prefixes = [each.params.get("key_prefix") for each in latest]
            parameters[REPLACES_PARAMETER] = [prefix for prefix in prefixes if prefix]
        return invoke_cloud_function(
            self._http_session,
            url=self._function_url,
            data=request_body(event, parameters),
            headers=trace_headers(trace, session.context_data["run_id"]),
            timeout=self._timeout + _MARGIN,
        )

    @contextmanager
    def _track(self, handler: CloudFunctionMessageHandler) -> Iterator[None]:
        """Count the call as in flight while the block runs."""
        with self._lock:
            self._in_flight.add(handler)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight.remove(handler)

    @contextmanager
    def _open_session(
        self, context_data: PipesContextData, handler: CloudFunctionMessageHandler
    ) -> Iterator[dg.PipesSession]:
        """As `dagster.open_pipes_session`, which does not accept another message handler."""
        with (
            self._context_injector.inject_context(context_data) as context_params,
            handler.handle_messages() as message_params,
        ):
            yield dg.PipesSession(
                context_data=context_data,
                message_handler=handler,
                context_injector_params=context_params,
                message_reader_params=message_params,
                context=self._context,
            )

    def _wait_for_messages(
        self, handler: CloudFunctionMessageHandler, response: CloudFunctionResponse
    ) -> None:
        """Wait, after a lost response, until the messages say that the function has finished."""
        if self._cancelled.is_set():
            return
        time_to_finish = max(self._timeout + _MARGIN - response.seconds, _MARGIN)
        is_local = is_loopback(self._function_url)  # no instance has to start
        time_to_start = min(time_to_finish, _MARGIN if is_local else _TIME_TO_START)
        if not handler.finished.is_set():
            handler.warn(
                f"{_explain_lost(response, handler)} The function may still be running, so it is "
                f"not called again now. Waiting up to {time_to_start:.0f} s for its first message, "
                f"then up to {time_to_finish:.0f} s for it to finish."
            )
        if handler.started.wait(time_to_start):
            handler.finished.wait(time_to_finish)

    def _may_retry(self, first_started: float, delay: float) -> bool:
        """Whether a call that did not start may be retried after `delay` seconds."""
        now = time.monotonic()
        with self._lock:
            is_running = any(handler.has_opened for handler in self._in_flight)
        deadline = max(first_started, self._last_finished) + self._retry_timeout
        return not self._cancelled.is_set() and (is_running or now + delay <= deadline)


def _crashed_attempts(handle: CallHandle | None) -> Iterator[EarlierAttempt]:
    """The attempts of a call in earlier executions of the step that have crashed."""
    response = CloudFunctionResponse(Outcome.UNKNOWN, None, None, 0.0)
    for call in handle.crashed if handle else ():
        for number in range(1, call.attempts + 1):
            yield EarlierAttempt(number, call.params_of(number), response, has_crashed=True)


def _keep_latest(earlier: list[EarlierAttempt]) -> None:
    """Forget the oldest attempts of this process. Those of others may be running."""
    rejected = [each for each in earlier if not each.has_crashed]
    for each in rejected[:-_MOST_BLOCKED]:
        earlier.remove(each)


def _must_be_made_again(attempt: Attempt) -> bool:
    """Whether a call that was followed has failed, died, or passed its deadline.

    If its messages could not be read, that is unknown, and the step fails.
    """
    handler = attempt.handler
    return handler.exception is not None or not (handler.has_closed or handler.lost)


def _trace(params: PipesParams) -> str:
    """The ID of an attempt's trace. It follows from the key prefix: who follows a call knows it."""
    key_prefix = params.get("key_prefix")
    return (uuid.uuid5(uuid.NAMESPACE_URL, str(key_prefix)) if key_prefix else uuid.uuid4()).hex


def _explain_lost(response: CloudFunctionResponse, handler: CloudFunctionMessageHandler) -> str:
    """Why only the messages of a call say how it ended."""
    if handler.is_followed:
        return f"{response.error}."
    return f"Lost the connection after {response.seconds:.1f} s ({response.error})."


def _level(name: str | None) -> str:
    """The log level of Dagster's that is nearest to one of Python's, such as `Level 25`."""
    name = (name or "INFO").upper()
    number = logging.getLevelNamesMapping().get(name)
    if number is None:
        match = re.fullmatch(r"LEVEL (\d+)", name)
        number = int(match[1]) if match else logging.INFO
    return LEVELS[nearest_level(number)]


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        try:
            metadata_map_from_external({key: value})
        except Exception as error:
            raise ValueError(
                f"The metadata value {key!r} is not of the type {value['type']!r}; it is "
                f"{value['raw_value']!r:.200}."
            ) from error


def is_observation(payload: Any) -> bool:
    """Whether the payload of a custom message is an asset observation."""
    return isinstance(payload, dict) and OBSERVATION in payload


def _observation(
    asset_key: str, metadata: Mapping[str, Any], data_version: str | None, partition: str | None
) -> dg.AssetObservation:
    tags = {} if data_version is None else {"dagster/data_version": data_version}
    return dg.AssetObservation(
        dg.AssetKey.from_escaped_user_string(asset_key),
        metadata=metadata_map_from_external(metadata),
        partition=partition,
        tags=tags,
    )
