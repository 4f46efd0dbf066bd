"""One call: its attempts, their messages, and how it ended."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster_pipes import DagsterPipesError, PipesContextData, PipesParams

from gcp_pipes.orchestrator.context import StepContext
from gcp_pipes.orchestrator.launcher import Ending, Launch, Launcher, Outcome, retry_delays
from gcp_pipes.orchestrator.messages import CallMessageHandler
from gcp_pipes.orchestrator.step_calls import CallHandle

_MARGIN = 10.0  # seconds that the end of a call may come after its timeout
_MOST_BLOCKED = 10  # earlier attempts that a retry prevents from starting
TIME_TO_CANCEL = 10.0  # seconds for the request that cancels, and then for the task to stop


@dataclass(frozen=True)
class Attempt:
    """One attempt of a call, after all its messages have been read.

    Attributes:
        launcher: Where the call ran.
        number: The attempt's number, from 1.
        session: The Pipes session, with what the task reported.
        handler: What the messages said of the call.
        ending: How it ended, as far as the launcher knows.
        trace: The ID of the trace that the request and the task's logs belong to.
        seconds: How long it took, with the reading of the last messages.
    """

    launcher: Launcher
    number: int
    session: dg.PipesSession
    handler: CallMessageHandler
    ending: Ending
    trace: str
    seconds: float

    @property
    def has_started(self) -> bool:
        """Whether the task may have run. The message `opened` is sent before it runs."""
        return not self.handler.did_not_start and (
            self.ending.outcome is not Outcome.NOT_STARTED
            or self.handler.has_opened
            or bool(self.handler.lost)
        )


@dataclass(frozen=True)
class EarlierAttempt:
    """An attempt that may be running, or may start late.

    Attributes:
        number: The attempt's number, from 1.
        params: Where its messages are.
        ending: How it ended, as far as the launcher knows.
        has_crashed: Whether the process that made it has crashed, in another execution of the step.
    """

    number: int
    params: PipesParams
    ending: Ending
    has_crashed: bool = False


class Caller:
    """Makes the calls of one step; many can be in flight at the same time."""

    def __init__(
        self,
        context: StepContext,
        launcher: Launcher,
        context_injector: dg.PipesContextInjector,
        *,
        timeout: float,
        retry_timeout: float,
        forward_termination: bool,
    ) -> None:
        self._context = context
        self._launcher = launcher
        self._context_injector = context_injector
        self._timeout = timeout
        self._retry_timeout = retry_timeout
        self._forward_termination = forward_termination
        self._cancelled = threading.Event()
        self._lock = threading.Lock()  # guards the attributes below
        self._in_flight: set[CallMessageHandler] = set()
        self._last_finished = 0.0  # when the last attempt finished that had started the task
        self._can_be_cancelled = not launcher.cancels_only_accepted

    def call(
        self,
        event: bytes,
        context_data: PipesContextData,
        make_handler: Callable[[], CallMessageHandler],
        handle: CallHandle | None = None,
    ) -> Attempt:
        """Make a call, and wait until it finishes.

        A call that did not start is retried until `retry_timeout` has passed, and for longer while
        another call of the step is running, since there may be no room for it now. One that may
        have started is not retried: if the connection is lost, the messages say how it ended. Nor
        is one that the deployed code rejects, since it would reject the retry, too.

        An attempt may start late, after its request was rejected. So before a retry, and
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
                lambda *opened: self._launch(event, earlier, *opened),
            )
            attempt = self._follow_successor(attempt, context_data, make_handler, handle)
            is_blocked = (
                attempt.ending.is_conflict and not attempt.handler.has_opened and len(earlier) > 0
            )
            if attempt.has_started and not is_blocked:
                if attempt.handler.has_opened:
                    return attempt
                # Perhaps since an earlier attempt has started, which not all places can say.
                return self._follow_started(earlier, context_data, make_handler, handle) or attempt
            if attempt.ending.may_start_late and not attempt.handler.did_not_start:
                earlier.append(EarlierAttempt(number, attempt.handler.params, attempt.ending))
                _keep_latest(earlier)
            may_retry = not attempt.handler.is_rejected and self._may_retry(first_started, delay)
            if may_retry:
                if not is_blocked:
                    attempt.handler.warn(
                        f"Attempt {number} did not reach the {self._launcher.what}: "
                        f"{attempt.ending.error} Retrying in {delay:.1f} s."
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

    def _cancel(self, handlers: Sequence[CallMessageHandler]) -> None:
        """Cancel calls, by their handlers."""
        with self._lock:
            self._can_be_cancelled |= any(each.can_be_cancelled for each in handlers)
        self._send_cancellation([each.call_to_cancel() for each in handlers])

    def _send_cancellation(self, calls: Sequence[Mapping[str, Any]]) -> None:
        """Cancel calls, also those that have not started yet."""
        if not calls or not self._can_be_cancelled:
            return
        try:
            error = self._launcher.cancel(calls, TIME_TO_CANCEL)
        except Exception as failure:  # it must not hide why the calls are cancelled
            error = repr(failure)
        if error is not None:
            self._context.log.warning(f"Could not cancel the {self._launcher.what}: {error}")

    def _follow_started(
        self,
        earlier: list[EarlierAttempt],
        context_data: PipesContextData,
        make_handler: Callable[[], CallMessageHandler],
        handle: CallHandle | None,
    ) -> Attempt | None:
        """Follow an earlier attempt that has started, until it has finished.

        One of a process that has crashed is removed if it has failed, since the step is executed
        again to do the work.
        """
        while started := self._find_started(earlier, make_handler):
            attempt = self._follow(started, context_data, make_handler, handle)
            attempt = self._follow_successor(attempt, context_data, make_handler, handle)
            handler = attempt.handler
            if handler.did_not_start:
                earlier.remove(started)
                continue
            is_over = not started.has_crashed or self._cancelled.is_set()
            if is_over or not _must_be_made_again(attempt):
                return attempt
            if not (handler.has_closed or handler.silence):  # it may still be running
                self._cancel([handler])
            earlier.remove(started)
            if handle is not None:
                handle.calls.report_over(started.params)
            handler.warn("The call that this step had made before has failed, so it is made again.")
        return None

    def _find_started(
        self,
        earlier: list[EarlierAttempt],
        make_handler: Callable[[], CallMessageHandler],
    ) -> EarlierAttempt | None:
        """The attempt that has started after all. Those that cannot start any more are removed."""
        for attempt in list(earlier):
            if self._cancelled.is_set():
                return None
            match make_handler().first_message(attempt.params):
                case "opened":
                    return attempt
                case None if attempt.has_crashed and self._launcher.is_launched(
                    str(attempt.params.get("key_prefix"))
                ):
                    return attempt
                case str():  # from a retry, or from a cancellation
                    earlier.remove(attempt)
        return None

    def _follow(
        self,
        earlier: EarlierAttempt,
        context_data: PipesContextData,
        make_handler: Callable[[], CallMessageHandler],
        handle: CallHandle | None,
    ) -> Attempt:
        """Read the messages of an earlier attempt, until it has finished."""
        handler = make_handler()
        if handle is not None:
            handler.logged = handle.calls.logged
        handler.read_at(earlier.params)
        handler.is_followed = True
        error = earlier.ending.late_start
        seconds = 0.0
        if earlier.has_crashed:
            error = "The process of this step crashed after it had made this call"
            seconds = handler.age(earlier.params)
        unknown = Ending(Outcome.UNKNOWN, error, seconds)

        def follow(*opened: *tuple[dg.PipesSession, CallMessageHandler, str]) -> Ending:
            launch = Launch(b"", *opened, self._timeout, replaces=[])
            return self._launcher.follow(launch) or unknown

        return self._attempt(earlier.number, context_data, handler, follow)

    def _follow_successor(
        self,
        attempt: Attempt,
        context_data: PipesContextData,
        make_handler: Callable[[], CallMessageHandler],
        handle: CallHandle | None,
    ) -> Attempt:
        """Follow the attempt by which the platform has replaced this one, if it has, and so on."""
        while attempt.ending.successor is not None:
            attempt.handler.warn(
                f"The {self._launcher.what} was started again, and not by Dagster. What it had "
                "reported before does not count."
            )
            params = {**attempt.handler.params, "key_prefix": attempt.ending.successor}
            successor = EarlierAttempt(attempt.number, params, attempt.ending)
            attempt = self._follow(successor, context_data, make_handler, handle)
        return attempt

    def _attempt(
        self,
        number: int,
        context_data: PipesContextData,
        handler: CallMessageHandler,
        launch: Callable[[dg.PipesSession, CallMessageHandler, str], Ending],
    ) -> Attempt:
        """Make one attempt, under a key prefix of its own, and read all its messages."""
        start = time.monotonic()
        ending = Ending(Outcome.NOT_STARTED, "No request was sent.", 0.0)
        try:
            with self._open_session(context_data, handler) as session, self._track(handler):
                try:
                    trace = _trace(session.message_reader_params)
                    try:
                        ending = launch(session, handler, trace)
                    except Exception as error:  # it may have started
                        ending = Ending(Outcome.UNKNOWN, repr(error), time.monotonic() - start)
                    if ending.outcome is Outcome.UNKNOWN:
                        self._wait_for_messages(handler, ending)
                    # If it is alive after all, it has to stop.
                    if handler.silence is not None and ending.successor is None:
                        self._cancel([handler])
                except BaseException:  # the run is being terminated
                    handler.finished.wait(self.cancel())
                    raise
        except DagsterPipesError as error:  # messages are missing, or could not be parsed
            handler.lost.append(str(error))
        seconds = time.monotonic() - start
        attempt = Attempt(self._launcher, number, session, handler, ending, trace, seconds)
        if ending.outcome is Outcome.UNKNOWN and handler.has_closed:
            handler.warn(f"The response was lost ({ending.error}). The messages are complete.")
        with self._lock:
            self._can_be_cancelled |= handler.can_be_cancelled
            if attempt.has_started:
                self._last_finished = time.monotonic()
        return attempt

    def _launch(
        self,
        event: bytes,
        earlier: Sequence[EarlierAttempt],
        session: dg.PipesSession,
        handler: CallMessageHandler,
        trace: str,
    ) -> Ending:
        if self._cancelled.is_set():
            return Ending(Outcome.NOT_STARTED, "The step was cancelled.", 0.0)
        latest = sorted(earlier, key=lambda each: each.has_crashed)[-_MOST_BLOCKED:]
        prefixes = [each.params.get("key_prefix") for each in latest]
        replaces = [prefix for prefix in prefixes if prefix]
        return self._launcher.launch(
            Launch(event, session, handler, trace, self._timeout, replaces)
        )

    @contextmanager
    def _track(self, handler: CallMessageHandler) -> Iterator[None]:
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
        self, context_data: PipesContextData, handler: CallMessageHandler
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

    def _wait_for_messages(self, handler: CallMessageHandler, ending: Ending) -> None:
        """Wait, after a lost response, until the messages say that the task has finished."""
        if self._cancelled.is_set():
            return
        time_to_finish = self._time_to_finish(ending, handler)
        time_to_start = min(time_to_finish, self._launcher.time_to_start)
        if not handler.finished.is_set():
            handler.warn(
                f"{_explain_lost(ending, handler)} The {self._launcher.what} may still be running, "
                f"so it is not called again now. Waiting up to {time_to_start:.0f} s for its first "
                f"message, then up to {time_to_finish:.0f} s for it to finish."
            )
        if handler.started.wait(time_to_start):
            handler.finished.wait(self._time_to_finish(ending, handler))

    def _time_to_finish(self, ending: Ending, handler: CallMessageHandler) -> float:
        """How long to wait for the end of a call, in seconds: at least until its death is known."""
        time_left = self._timeout - ending.seconds
        return max(time_left, handler.longest_silence or 0.0, 0.0) + _MARGIN

    def _may_retry(self, first_started: float, delay: float) -> bool:
        """Whether a call that did not start may be retried after `delay` seconds."""
        now = time.monotonic()
        with self._lock:
            is_running = any(handler.has_opened for handler in self._in_flight)
        deadline = max(first_started, self._last_finished) + self._retry_timeout
        return not self._cancelled.is_set() and (is_running or now + delay <= deadline)


def _crashed_attempts(handle: CallHandle | None) -> Iterator[EarlierAttempt]:
    """The attempts of a call in earlier executions of the step that have crashed."""
    ending = Ending(Outcome.UNKNOWN, None, 0.0)
    for number, params in handle.crashed if handle else ():
        yield EarlierAttempt(number, params, ending, has_crashed=True)


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


def _explain_lost(ending: Ending, handler: CallMessageHandler) -> str:
    """Why only the messages of a call say how it ended."""
    if handler.is_followed:
        return f"{ending.error}."
    return f"Lost the connection after {ending.seconds:.1f} s ({ending.error})."
