"""Whether a call succeeded, and the metadata of the call."""

import re
from collections.abc import Iterable, Mapping

import dagster as dg
from dagster_pipes import PipesException

from gcp_pipes.orchestrator.call import Attempt
from gcp_pipes.orchestrator.context import (
    StepContext,
    assets_of_step,
    checks_of_step,
    is_observable,
    required_assets,
)
from gcp_pipes.orchestrator.launcher import Outcome
from gcp_pipes.orchestrator.messages import CallMessageHandler
from gcp_pipes.protocol import FUNCTION_NAME, PROTOCOL_VERSION, WRONG_VERSION, explain_versions

LOGS_SUFFIX = "_logs"  # of the name of the metadata that links to the logs of a call


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
    if problem := find_call_problem(attempt, no_messages_hint):
        return problem
    if not may_make_results(context) and (
        missing := find_missing_results(context, attempt, implicit_materializations)
    ):
        return missing
    return _find_undeclared_checks(context, attempt)


def find_call_problem(attempt: Attempt, no_messages_hint: str) -> str | None:
    """Why a call failed, whatever it should have reported; None if it succeeded."""
    if attempt.handler.is_wrong_version:
        return _explain_wrong_version(attempt)
    failure = _find_failure(attempt)
    problems = [failure] if failure else []
    problems += attempt.handler.rejected
    if attempt.handler.lost:
        what = attempt.launcher.what
        lost = (
            f"Messages of the {what} were lost. Check that nothing but the {what} writes to the "
            "messages bucket, and that nothing but its lifecycle rule deletes from it."
        )
        problems += [*([] if failure else [lost]), *attempt.handler.lost]
    if problems:
        return "\n\n".join(problems)
    return _find_silence(attempt, no_messages_hint)


def _explain_wrong_version(attempt: Attempt) -> str:
    """Why the deployed code and the definition do not fit together, and what to do."""
    handler, launcher = attempt.handler, attempt.launcher
    name = (handler.opened_extras or {}).get(FUNCTION_NAME) or launcher.target
    problem = explain_versions(PROTOCOL_VERSION, handler.deployed_version, launcher.deploy)
    if problem is None and handler.exception is not None:
        reason = re.sub(rf"^[\w.]*{WRONG_VERSION}: ", "", handler.exception["message"].strip())
        problem = (
            f"{reason} Its deployed code may be older or newer than the definition: "
            f"{launcher.deploy}, or correct the name."
        )
    return f"The {launcher.what} {name} does not fit the definition in Dagster: {problem}"


def _find_failure(attempt: Attempt) -> str | None:
    """What went wrong, by the messages or by what the launcher knows."""
    handler, ending, what = attempt.handler, attempt.ending, attempt.launcher.what
    if handler.exception is not None:
        summary = f"The {what} raised an exception: {_first_line(handler.exception)}"
        return f"{summary}\n\n{format_pipes_exception(handler.exception)}"
    if handler.silence is not None and not handler.has_closed:
        has_ended = ending.outcome is Outcome.FINISHED
        death = (
            f"The {what} has died: for {handler.silence:.0f} s, it has stored neither messages nor "
            "heartbeats. Its instance has ended, or has lost its memory, network or credentials: "
            "see its logs. It may have done all or part of its work."
        )
        return f"{death} {ending.error}" if ending.error and has_ended else death
    if ending.outcome is not Outcome.UNKNOWN:
        return ending.explain(what)
    if handler.has_closed:
        return None
    return (
        f"The response of the {what} was lost ({ending.error}), and its messages do not say how it "
        "ended. It may have done all or part of its work: see its logs."
    )


def _find_silence(attempt: Attempt, no_messages_hint: str) -> str | None:
    """Which message is missing, `opened` or `closed`."""
    what = attempt.launcher.what
    if not attempt.handler.has_opened:
        return f"The {what} has ended, but sent no message. {no_messages_hint}"
    if not attempt.handler.has_closed:
        return (
            f"The {what} has ended, but did not close its Pipes context. Use `with "
            "open_pipes(...)` there."
        )
    return None


def may_make_results(context: StepContext) -> bool:
    """Whether the step's own code may make its results, and the task need not report them.

    It may make an observation, and the evaluation of a check that is a step of its own. A
    materialization is the task's own work.
    """
    return is_observable(context) or not assets_of_step(context)


def find_missing_results(
    context: StepContext,
    attempt: Attempt,
    implicit_materializations: bool,
) -> str | None:
    """Why the results of the step are incomplete, or None if the task reported all."""
    handler, what = attempt.handler, attempt.launcher.what
    results = handler.get_reported_results()
    assets = {each.asset_key for each in results if isinstance(each, dg.MaterializeResult)}
    if is_observable(context):
        assets.update(observation.asset_key for observation in handler.observations)
    missing_assets = required_assets(context) - assets
    if missing_assets and not implicit_materializations:
        if is_observable(context):
            return (
                f"The {what} did not report {_names(missing_assets)} as observed. Call "
                "`report_asset_observation` of `gcp_pipes` in the task, or yield an ObserveResult "
                "of your own."
            )
        return (
            f"The {what} did not report {_names(missing_assets)} as materialized. Call "
            "`pipes.report_asset_materialization` in the task."
        )
    if missing_checks := checks_of_step(context) - _reported_checks(handler):
        return (
            f"The {what} did not report the check {_names(missing_checks)}. Call "
            "`pipes.report_asset_check` in the task."
        )
    return None


def _find_undeclared_checks(context: StepContext, attempt: Attempt) -> str | None:
    if not context.has_assets_def:
        return None
    reported = _reported_checks(attempt.handler)
    if undeclared := {key for key in reported if not _is_declared(context, key)}:
        return (
            f"The {attempt.launcher.what} reported the check {_names(undeclared)}, which the asset "
            "does not declare. Add it to the asset's `check_specs`, or to the component's `checks`."
        )
    return None


def _reported_checks(handler: CallMessageHandler) -> set[dg.AssetCheckKey]:
    """The checks that the task reported."""
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
    """Whether further calls would fail, too.

    Nothing is there, it rejects our credentials, or it has another version.
    """
    return not attempt.has_started or attempt.ending.is_refused or attempt.handler.is_wrong_version


def reason(attempt: Attempt, problem: str) -> str:
    """Why a call failed, in one line: the exception's message, or the first line of `problem`."""
    exception = None if attempt.handler.is_wrong_version else attempt.handler.exception
    return _first_line(exception) if exception else problem.split("\n")[0]


def _first_line(exception: PipesException) -> str:
    lines = exception["message"].strip().split("\n")
    # That of a SyntaxError begins with its place, and ends with the error.
    return f"{lines[-1]}, in {lines[0]}" if lines[0].startswith('File "') else lines[0]


def describe(attempt: Attempt) -> dict[str, dg.MetadataValue]:
    """The metadata of a call, however it ended: its duration, a table, and a link to its logs."""
    return call_metadata(
        attempt.launcher.what,
        details(attempt),
        attempt.ending.seconds,
        attempt.ending.logs_url
        or attempt.launcher.logs_url(attempt.trace, attempt.session.context_data["run_id"]),
    )


def call_metadata(
    what: str, details: Mapping[str, str], seconds: float, logs: str | None
) -> dict[str, dg.MetadataValue]:
    """The metadata of a call of something: its duration, a table, and a link to its logs."""
    name = what.lower().replace(" ", "_")
    rows = "\n".join(f"| {row} | {value} |" for row, value in details.items())
    metadata: dict[str, dg.MetadataValue] = {
        f"{name}_seconds": dg.MetadataValue.float(round(seconds, 3)),
        f"{name}_call": dg.MetadataValue.md(f"| call | |\n| --- | --- |\n{rows}"),
    }
    if logs is not None:
        metadata[f"{name}{LOGS_SUFFIX}"] = dg.MetadataValue.url(logs)
    return metadata


def details(attempt: Attempt) -> dict[str, str]:
    """What is known of a call, as text by name."""
    handler = attempt.handler
    values = {
        attempt.launcher.target_kind: attempt.launcher.target,
        **attempt.ending.details(),
        "attempts": str(attempt.number),
        "seconds": f"{attempt.ending.seconds:.3f}",
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
