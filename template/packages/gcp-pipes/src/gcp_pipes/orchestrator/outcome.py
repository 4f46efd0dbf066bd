"""Whether a call of a cloud function succeeded, and the metadata of the call."""

from collections.abc import Iterable, Mapping
from urllib.parse import quote, urlencode

import dagster as dg
from dagster_pipes import PipesException

from gcp_pipes.orchestrator.call import Attempt, CloudFunctionMessageHandler
from gcp_pipes.orchestrator.context import (
    StepContext,
    assets_of_step,
    checks_of_step,
    is_observable,
    required_assets,
)
from gcp_pipes.orchestrator.http import CloudFunctionResponse, Outcome, is_redirect
from gcp_pipes.orchestrator.urls import is_loopback

_HINTS = {
    None: "Check that FUNCTION_URL is the function's own URL and that the function is running.",
    404: "Check that FUNCTION_URL is the function's own URL and that the function is deployed.",
    429: "The function has no free instance: raise its maximum of instances or its concurrency.",
}

_REDIRECTED = "Redirects are not followed: set FUNCTION_URL to the function's own https URL."

_LOST = (
    "Messages of the cloud function were lost. Check that nothing but the function writes to the "
    "messages bucket, and that nothing but its lifecycle rule deletes from it."
)


class PipesCloudFunctionError(dg.Failure):
    """A call of a cloud function failed. It fails the step."""


def find_problem(
    context: StepContext,
    attempt: Attempt,
    *,
    no_messages_hint: str,
    implicit_materializations: bool,
) -> str | None:
    """Why a call failed, or None if it succeeded.

    Where the step's own code may make results, missing ones are left to `find_missing_results`.
    """
    failure = _find_failure(attempt)
    problems = [failure] if failure else []
    problems += attempt.handler.rejected
    if attempt.handler.lost:
        problems += [*([] if failure else [_LOST]), *attempt.handler.lost]
    if problems:
        return "\n\n".join(problems)
    if silence := _find_silence(attempt.handler, no_messages_hint):
        return silence
    if not may_make_results(context) and (
        missing := find_missing_results(context, attempt.handler, implicit_materializations)
    ):
        return missing
    return _find_undeclared_checks(context, attempt.handler)


def _find_failure(attempt: Attempt) -> str | None:
    """What went wrong, by the function's messages or by its response."""
    handler, response = attempt.handler, attempt.response
    if handler.exception is not None:
        summary = f"The cloud function raised an exception: {_first_line(handler.exception)}"
        return f"{summary}\n\n{format_pipes_exception(handler.exception)}"
    if response.outcome is Outcome.UNKNOWN:
        if handler.has_closed:
            return None
        if handler.silence is not None:
            return (
                f"The cloud function has died: for {handler.silence:.0f} s, it has stored neither "
                "messages nor heartbeats. Its instance has ended, or has lost its memory, network "
                "or credentials: see its logs. It may have done all or part of its work."
            )
        return (
            f"The response of the cloud function was lost ({response.error}), and its messages do "
            "not say how it ended. It may have done all or part of its work: see its logs."
        )
    return explain_response(response, attempt.auth_error)


def explain_response(response: CloudFunctionResponse, auth_error: str | None) -> str | None:
    """What went wrong by a response, or without one, and what to do; None for a status of 2xx."""
    if response.error is None:
        return None
    status = f"responded {response.status}" if response.status else "could not be reached"
    return f"The cloud function {status}: {response.error} {auth_error or _hint(response)}"


def _hint(response: CloudFunctionResponse) -> str:
    """What to do about a response, or about no response."""
    if is_redirect(response.status):
        return _REDIRECTED
    if response.may_start_late:
        return "The function could not start, or its instance crashed: see its logs."
    return _HINTS.get(response.status, "See its logs.")


def _find_silence(handler: CloudFunctionMessageHandler, no_messages_hint: str) -> str | None:
    """Which message of the function is missing, `opened` or `closed`."""
    if not handler.has_opened:
        return f"The cloud function responded, but sent no message. {no_messages_hint}"
    if not handler.has_closed:
        return (
            "The cloud function responded, but did not close its Pipes context. Use `with "
            "open_pipes(...)` there."
        )
    return None


def may_make_results(context: StepContext) -> bool:
    """Whether the step's own code may make its results, and the function need not report them.

    It may make an observation, and the evaluation of a check that is a step of its own. A
    materialization is the function's own work.
    """
    return is_observable(context) or not assets_of_step(context)


def find_missing_results(
    context: StepContext,
    handler: CloudFunctionMessageHandler,
    implicit_materializations: bool,
) -> str | None:
    """Why the results of the step are incomplete, or None if the function reported all."""
    results = handler.get_reported_results()
    assets = {each.asset_key for each in results if isinstance(each, dg.MaterializeResult)}
    if is_observable(context):
        assets.update(observation.asset_key for observation in handler.observations)
    missing_assets = required_assets(context) - assets
    if missing_assets and not implicit_materializations:
        if is_observable(context):
            return (
                f"The cloud function did not report {_names(missing_assets)} as observed. Call "
                "`report_asset_observation` of `gcp_pipes` in the task, or yield an ObserveResult "
                "of your own."
            )
        return (
            f"The cloud function did not report {_names(missing_assets)} as materialized. Call "
            "`pipes.report_asset_materialization` in the task."
        )
    if missing_checks := checks_of_step(context) - _reported_checks(handler):
        return (
            f"The cloud function did not report the check {_names(missing_checks)}. Call "
            "`pipes.report_asset_check` in the task."
        )
    return None


def _find_undeclared_checks(
    context: StepContext, handler: CloudFunctionMessageHandler
) -> str | None:
    if not context.has_assets_def:
        return None
    if undeclared := {key for key in _reported_checks(handler) if not _is_declared(context, key)}:
        return (
            f"The cloud function reported the check {_names(undeclared)}, which the asset does "
            "not declare. Add it to the asset's `check_specs`, or to the component's `checks`."
        )
    return None


def _reported_checks(handler: CloudFunctionMessageHandler) -> set[dg.AssetCheckKey]:
    """The checks that the function reported."""
    results = handler.get_reported_results()
    return {check_key(each) for each in results if isinstance(each, dg.AssetCheckResult)}


def check_key(result: dg.AssetCheckResult) -> dg.AssetCheckKey:
    """The check that a reported result is of."""
    assert result.asset_key is not None and result.check_name is not None  # noqa: S101, PT018
    return dg.AssetCheckKey(result.asset_key, result.check_name)


def _is_declared(context: StepContext, key: dg.AssetCheckKey) -> bool:
    try:
        context.assets_def.get_spec_for_check_key(key)
    except KeyError:
        return False
    return True


def _names(keys: Iterable[dg.AssetKey | dg.AssetCheckKey | None]) -> str:
    return ", ".join(sorted(key.to_user_string() for key in keys if key is not None))


def is_unreachable(attempt: Attempt) -> bool:
    """True if the function is unreachable or rejects our credentials."""
    status = attempt.response.status
    return not attempt.has_started or status in (401, 403, 404) or is_redirect(status)


def reason(attempt: Attempt, problem: str) -> str:
    """Why a call failed, in one line: the exception's message, or the first line of `problem`."""
    exception = attempt.handler.exception
    return _first_line(exception) if exception else problem.split("\n")[0]


def _first_line(exception: PipesException) -> str:
    lines = exception["message"].strip().split("\n")
    # That of a SyntaxError begins with its place, and ends with the error.
    return f"{lines[-1]}, in {lines[0]}" if lines[0].startswith('File "') else lines[0]


def describe(attempt: Attempt, project: str | None) -> dict[str, dg.MetadataValue]:
    """The metadata of a call, however it ended: its duration, a table, and a link to its logs."""
    return call_metadata(
        details(attempt),
        attempt.response.seconds,
        logs_url(
            project, attempt.function_url, attempt.trace, attempt.session.context_data["run_id"]
        ),
    )


def call_metadata(
    details: Mapping[str, str], seconds: float, logs: str | None
) -> dict[str, dg.MetadataValue]:
    """The metadata of a call: its duration, a table of its details, and a link to its logs."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in details.items())
    metadata: dict[str, dg.MetadataValue] = {
        "cloud_function_seconds": dg.MetadataValue.float(round(seconds, 3)),
        "cloud_function_call": dg.MetadataValue.md(f"| call | |\n| --- | --- |\n{rows}"),
    }
    if logs is not None:
        metadata["cloud_function_logs"] = dg.MetadataValue.url(logs)
    return metadata


def details(attempt: Attempt) -> dict[str, str]:
    """What is known of a call, as text by name."""
    handler = attempt.handler
    values = {
        "url": attempt.function_url,
        "status": "none" if attempt.response.status is None else str(attempt.response.status),
        "attempts": str(attempt.number),
        "seconds": f"{attempt.response.seconds:.3f}",
        "total seconds": f"{attempt.seconds:.3f}",
        "messages": f"{handler.message_count} in {handler.chunk_count} chunks",
        "trace": attempt.trace,
    }
    if "bucket" in handler.params and "key_prefix" in handler.params:
        values["prefix"] = f"gs://{handler.params['bucket']}/{handler.params['key_prefix']}/"
    return values


def summarize(details: Mapping[str, str]) -> str:
    """What is known of a call, with one value in each line."""
    return "\n".join(f"{name}: {value}" for name, value in details.items())


def logs_url(project: str | None, function_url: str, trace: str, run_id: str) -> str | None:
    """The page of Cloud Logging with what the function logged of a call; None on this machine.

    Google may give the request another trace than that of the call, so the page also finds it by
    the run, which the function adds to what it logs during the call.
    """
    if project is None or is_loopback(function_url):
        return None
    by_trace, by_run = f"projects/{project}/traces/{trace}", f'labels.dagster_run_id="{run_id}"'
    query = quote(f'trace="{by_trace}" OR {by_run}', safe="")
    return (
        f"https://console.cloud.google.com/logs/query;query={query}"
        f"?{urlencode({'project': project})}"
    )


def format_pipes_exception(exception: PipesException) -> str:
    """The exception as Python prints it, with its cause or context first."""
    stack = ["Traceback (most recent call last):\n", *exception["stack"]]
    traceback = "".join([*(stack if exception["stack"] else []), exception["message"]])
    if cause := exception["cause"]:
        relation = "The above exception was the direct cause of the following exception:"
        return f"{format_pipes_exception(cause)}\n{relation}\n\n{traceback}"
    if context := exception["context"]:
        relation = "During handling of the above exception, another exception occurred:"
        return f"{format_pipes_exception(context)}\n{relation}\n\n{traceback}"
    return traceback
