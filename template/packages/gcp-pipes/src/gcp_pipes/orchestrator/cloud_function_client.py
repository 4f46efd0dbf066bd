"""Calls a cloud function from a Dagster asset: the client of the package."""

from collections.abc import Callable, Iterator
from typing import Unpack

import dagster as dg
import requests

from gcp_pipes.orchestrator.auth import CredentialsError, http_session
from gcp_pipes.orchestrator.cloud_function import CloudFunctionLauncher, PipesCloudFunctionError
from gcp_pipes.orchestrator.context import Context
from gcp_pipes.orchestrator.event import Event
from gcp_pipes.orchestrator.external_client import (
    CallOptions,
    ClientOptions,
    PipesExternalClient,
)
from gcp_pipes.orchestrator.partitions import PartitionEvent
from gcp_pipes.orchestrator.plain_call import CloudFunctionAnswer, call_plain_function
from gcp_pipes.orchestrator.results import CompletedCall
from gcp_pipes.orchestrator.urls import root_url


class PipesCloudFunctionEventContextInjector(dg.PipesEnvContextInjector):
    """Puts the Dagster context into the event, the body of the request."""


class PipesCloudFunctionClient(PipesExternalClient):
    """Runs the work of an asset or op in a Google Cloud function.

    One client can make any number of calls, also at the same time. It keeps its connections until
    it is closed.

    Args:
        message_reader: Reads the function's messages.
        context_injector: Sends the Dagster context to the function. The default puts it into the
            event.
        project: The Google Cloud project of the function, for the link to its logs.
        audience: The audience of identity tokens. The default is the function's root URL.
        impersonate: The e-mail address of a service account to call functions as. The default is
            the account that Dagster runs as.
        options: See `ClientOptions`. A call did not start if it could not connect, or if Google's
            front end rejected it with 429, 500, 502 or 503.
    """

    def __init__(
        self,
        message_reader: dg.PipesMessageReader,
        context_injector: dg.PipesContextInjector | None = None,
        *,
        project: str | None = None,
        audience: str | None = None,
        impersonate: str | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        injector = context_injector or PipesCloudFunctionEventContextInjector()
        super().__init__(message_reader, injector, **options)
        self._project = project
        self._audience = audience
        self._impersonate = impersonate
        self._sessions: dict[str, requests.Session] = {}  # guarded by the lock

    def run(  # type: ignore[override]  # it takes a URL instead of a launcher
        self,
        *,
        context: Context,
        function_url: str,
        event: Event,
        **options: Unpack[CallOptions],
    ) -> CompletedCall:
        """Call the function and wait until it has finished. Its log lines appear while it runs.

        A call that did not start is retried. One that may have started is not: if its response is
        lost, the function's messages say how it ended. If the run is terminated, the call is
        cancelled.

        Args:
            context: The context of the asset, the asset check, or the op.
            function_url: The function's URL. A request to https carries an identity token.
            event: The task's inputs: a JSON object.
            options: See `CallOptions`.

        Returns:
            What the function reported. Return it from an asset by `.get_materialize_result()`, and
            from an asset check by `.get_asset_check_result()`. Yield several results, or
            observations, by `.get_results()`.

        Raises:
            PipesCloudFunctionError: The event could not be sent, the function could not be called
                or failed, it did not report every asset and check of the step, or messages were
                lost.
        """
        launcher = self._launcher(function_url)
        return super().run(context=context, launcher=launcher, event=event, **options)

    def run_partitions(  # type: ignore[override]  # it takes a URL instead of a launcher
        self,
        *,
        context: Context,
        function_url: str,
        event: Event | Callable[[str], Event],
        max_in_flight: int = 10,
        **options: Unpack[CallOptions],
    ) -> Iterator[PartitionEvent]:
        """Call the function for each partition of the run, several at the same time.

        This is for assets with `BackfillPolicy.single_run()`, whose runs may have many partitions.
        The results of a partition are in the event log as soon as its call has finished. A failed
        partition fails the step, after the calls for all other partitions. If the step is retried,
        or the run re-executed from failure, partitions that are materialized are not called for
        again. A run of a single partition is like `run`.

        A check that is not partitioned is evaluated once, for all partitions together.

        Args:
            context: The context of the asset.
            function_url: The function's URL. A request to https carries an identity token.
            event: The task's inputs: a JSON object, or a function that makes it for a partition
                key. That is called in one of the threads that make the calls.
            max_in_flight: How many calls may be in flight at the same time. More than the
                function's instances can serve is of no use.
            options: See `CallOptions`.

        Returns:
            What the asset yields, by `yield from`, which makes the calls.

        Raises:
            PipesCloudFunctionError: `max_in_flight` is less than 1; or, while results are yielded,
                the function could not be called, or partitions failed.
        """
        return super().run_partitions(
            context=context,
            launcher=self._launcher(function_url),
            event=event,
            max_in_flight=max_in_flight,
            **options,
        )

    def call(
        self,
        *,
        context: Context,
        function_url: str,
        event: Event,
        timeout: float | None = None,
        retry_timeout: float | None = None,
    ) -> CloudFunctionAnswer:
        """Call a function that knows nothing of Pipes, in any language, and wait for its response.

        A status of 2xx is success. Only a call that cannot have started is retried: one that could
        not connect, or that Google rejected with 429, since no instance was free. If the run is
        terminated, the function goes on.

        Args:
            context: The context of the asset, the asset check, or the op.
            function_url: The function's URL. A request to https carries an identity token.
            event: The body of the request: a JSON object. Nothing is added to it.
            timeout: As for the client, for this call. The function does not learn of it.
            retry_timeout: As for the client, for this call.

        Returns:
            What the function responded. Return it from an asset by `.get_materialize_result()`.

        Raises:
            PipesCloudFunctionError: The event could not be sent, the function could not be called,
                its status is not 2xx, or its response was lost.
        """
        return call_plain_function(
            context.op_execution_context,
            self._http_session(function_url),
            function_url,
            event,
            timeout=self._timeout if timeout is None else timeout,
            retry_timeout=self._retry_timeout if retry_timeout is None else retry_timeout,
            project=self._project,
        )

    def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        with self._lock:
            while self._sessions:
                self._sessions.popitem()[1].close()

    def _launcher(self, function_url: str) -> CloudFunctionLauncher:
        return CloudFunctionLauncher(
            function_url,
            self._http_session(function_url),
            has_context_in_body=isinstance(self._context_injector, dg.PipesEnvContextInjector),
            project=self._project,
        )

    def _http_session(self, function_url: str) -> requests.Session:
        """The session for a function, with its connections and its token, shared by all calls."""
        key = root_url(function_url)
        try:
            with self._lock:
                if key not in self._sessions:
                    self._sessions[key] = http_session(
                        function_url, audience=self._audience, impersonate=self._impersonate
                    )
                return self._sessions[key]
        except CredentialsError as error:
            raise PipesCloudFunctionError(f"{function_url} was not called: {error}") from error
