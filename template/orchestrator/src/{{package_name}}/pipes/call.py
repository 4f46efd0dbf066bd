"""One call of a cloud function: attempts, until one may have started work, and all that it said."""

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg
import requests
from dagster_pipes import DagsterPipesError, PipesContextData

from .context_data import StepContext
from .event import request_body
from .identity import explain_refusal
from .invocation import CloudFunctionAnswer, Outcome, cut_connections, invoke_cloud_function
from .message_handler import CloudFunctionMessageHandler

_MARGIN = 10.0  # seconds that an answer may come after the function's timeout
_TIME_TO_BEGIN = 300.0  # seconds; an instance that does not start within 240 is given up by Google
_FIRST_DELAY = 0.5  # seconds before a function is called again
TIME_TO_CANCEL = 10.0  # seconds, for the function to be told, and then for it to end its work

_CANCEL = "DAGSTER_PIPES_CANCEL"  # as gcp_pipes/cancellation.py of the function reads it
_TIMEOUT = "DAGSTER_PIPES_TIMEOUT"  # as gcp_pipes/deadline.py of the function reads it


@dataclass(frozen=True)
class Attempt:
    """One attempt to call the function, after all its messages have been read.

    Attributes:
        function_url: The function's URL.
        number: The attempt's number, counted from 1.
        session: The Pipes session, with what the function reported.
        handler: What the function said of the call itself.
        answer: The function's answer, or that there was none.
        trace: The trace that the request belongs to, and the function's logs of it.
        refusal: Why the function has turned the caller away, or None.
        seconds: How long it took, with the reading of the last messages.
    """

    function_url: str
    number: int
    session: dg.PipesSession
    handler: CloudFunctionMessageHandler
    answer: CloudFunctionAnswer
    trace: str
    refusal: str | None
    seconds: float

    @property
    def has_started(self) -> bool:
        """Whether work may have been done. The function says `opened` before it does any."""
        return (
            self.answer.outcome is not Outcome.NOT_STARTED
            or self.handler.has_opened
            or bool(self.handler.lost)
        )


class CloudFunctionCaller:
    """Makes the calls of one step, of which there may be many at once.

    Args:
        context: The context of the asset or op.
        function_url: The function's URL.
        http_session: Sends the requests.
        context_injector: Sends the Dagster context to the function.
        timeout: How long a call may take, in seconds: the function stops its task then.
        retry_timeout: Seconds for which a call is tried again that the function did not take. They
            begin anew while it is at work on another call of the step: it may have no room for one
            more.
    """

    def __init__(
        self,
        context: StepContext,
        function_url: str,
        http_session: requests.Session,
        context_injector: dg.PipesContextInjector,
        *,
        timeout: float,
        retry_timeout: float,
    ) -> None:
        self._function_url = function_url
        self._context = context
        self._http_session = http_session
        self._context_injector = context_injector
        self._timeout = timeout
        self._retry_timeout = retry_timeout
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # guards the attributes below
        self._at_work: set[CloudFunctionMessageHandler] = set()
        self._last_work = 0.0  # when an attempt that had started something ended
        self._can_be_cancelled = False

    def call(
        self,
        event: bytes,
        context_data: PipesContextData,
        make_handler: Callable[[], CloudFunctionMessageHandler],
    ) -> Attempt:
        """Call the function and wait until it is done, or until it has not taken the call for long.

        A call that cannot have started any work is made again. One that may have is not: if its
        answer is lost, the function's messages decide.

        Args:
            event: The task's inputs, as `serialize` of `event` returned them.
            context_data: The Pipes context.
            make_handler: Makes the message handler of each attempt.

        Returns:
            The last attempt.
        """
        begun = time.monotonic()
        for number, delay in enumerate(_delays(self._retry_timeout / 4), start=1):
            attempt = self._attempt(number, event, context_data, make_handler())
            if attempt.has_started or not self._may_try_again(begun, delay):
                break
            attempt.handler.warn(
                f"Attempt {number} did not reach the cloud function: {attempt.answer.error} The "
                f"next one is made in {delay:.1f} s."
            )
            self._stopping.wait(delay)
        return attempt

    def cancel(self) -> None:
        """Begin no further attempt, and tell the function to end the calls that it is at work on.

        Only a function that has said that it can be told so is told. That takes no other right than
        to call it.
        """
        self._stopping.set()
        with self._lock:
            handlers = list(self._at_work)
        if not any(handler.can_be_cancelled for handler in handlers) and not self._can_be_cancelled:
            return
        calls = [{**handler.params, "next_chunk": handler.chunk_count + 1} for handler in handlers]
        answer = invoke_cloud_function(
            self._http_session,
            url=self._function_url,
            data=json.dumps({_CANCEL: calls}).encode(),
            headers={},
            timeout=TIME_TO_CANCEL,
        )
        if answer.error:
            self._context.log.warning(
                f"The cloud function could not be told to end its work: {answer.error}"
            )

    def abandon(self) -> None:
        """Wait for no answer any longer. Each call ends as one whose answer was lost."""
        self._stopping.set()
        with self._lock:
            for handler in self._at_work:
                handler.wait_no_longer()
        cut_connections(self._http_session, self._function_url)

    def _attempt(
        self,
        number: int,
        event: bytes,
        context_data: PipesContextData,
        handler: CloudFunctionMessageHandler,
    ) -> Attempt:
        """Make one attempt, under a key prefix of its own, and read all its messages."""
        started = time.monotonic()
        trace = uuid.uuid4().hex
        try:
            with self._open_session(context_data, handler) as session, self._noted(handler):
                try:
                    answer = self._ask(event, session, trace)
                    if answer.outcome is Outcome.LOST:
                        self._wait_until_settled(handler, answer)
                except BaseException:  # the run is being terminated
                    self.cancel()
                    handler.settled.wait(TIME_TO_CANCEL)
                    raise
        except DagsterPipesError as error:  # messages are missing, or make no sense
            handler.lost.append(str(error))
        refusal = None
        if answer.status in (401, 403):
            refusal = explain_refusal(self._http_session, answer.status)
        seconds = time.monotonic() - started
        attempt = Attempt(
            self._function_url, number, session, handler, answer, trace, refusal, seconds
        )
        if answer.outcome is Outcome.LOST and handler.has_closed:
            handler.warn(f"The answer was lost, and the messages decide: {answer.error}")
        with self._lock:
            self._can_be_cancelled |= handler.can_be_cancelled
            if attempt.has_started:
                self._last_work = time.monotonic()
        return attempt

    def _ask(self, event: bytes, session: dg.PipesSession, trace: str) -> CloudFunctionAnswer:
        if self._stopping.is_set():  # since `cancel`, which did not know of this call
            return CloudFunctionAnswer(Outcome.NOT_STARTED, None, "The step has ended.", 0.0)
        return invoke_cloud_function(
            self._http_session,
            url=self._function_url,
            data=request_body(event, {**session.get_bootstrap_env_vars(), _TIMEOUT: self._timeout}),
            headers={
                "traceparent": f"00-{trace}-{uuid.uuid4().hex[:16]}-00",
                "Function-Execution-Id": session.context_data["run_id"],
            },
            timeout=self._timeout + _MARGIN,
        )

    @contextmanager
    def _noted(self, handler: CloudFunctionMessageHandler) -> Iterator[None]:
        """Know, while the block runs, that the function may be at work on this call."""
        with self._lock:
            self._at_work.add(handler)
        try:
            yield
        finally:
            with self._lock:
                self._at_work.remove(handler)

    @contextmanager
    def _open_session(
        self, context_data: PipesContextData, handler: CloudFunctionMessageHandler
    ) -> Iterator[dg.PipesSession]:
        """As `dagster.open_pipes_session`, which does not let one choose the message handler."""
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

    def _wait_until_settled(
        self, handler: CloudFunctionMessageHandler, answer: CloudFunctionAnswer
    ) -> None:
        """Give the function the rest of its time to say by messages what its answer did not."""
        if self._stopping.is_set():
            return
        patience = max(self._timeout + _MARGIN - answer.seconds, _MARGIN)
        time_to_begin = min(patience, _TIME_TO_BEGIN)
        if not handler.settled.is_set():
            handler.warn(
                f"The answer of the cloud function was lost after {answer.seconds:.1f} s, while it "
                f"may be running: {answer.error} If it says within {time_to_begin:.0f} s that it "
                f"has begun, its messages are awaited for up to {patience:.0f} s. It is not called "
                "again."
            )
        if handler.begun.wait(time_to_begin):
            handler.settled.wait(patience)

    def _may_try_again(self, begun: float, delay: float) -> bool:
        """Whether a call that was not taken may be made again after `delay` seconds."""
        now = time.monotonic()
        with self._lock:
            is_at_work = any(handler.has_opened for handler in self._at_work)
        give_up = max(begun, self._last_work) + self._retry_timeout
        return not self._stopping.is_set() and (is_at_work or now + delay <= give_up)


def _delays(longest: float) -> Iterator[float]:
    """Seconds to wait before each further attempt: longer and longer, and never in step."""
    delay = _FIRST_DELAY
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311  # nothing to keep secret
        delay = max(min(2 * delay, longest), _FIRST_DELAY)
