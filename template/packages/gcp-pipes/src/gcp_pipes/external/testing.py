"""Runs tasks without Dagster and without a server: in a test, or under a debugger."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dagster_pipes import (
    DAGSTER_PIPES_CONTEXT_ENV_VAR,
    DAGSTER_PIPES_MESSAGES_ENV_VAR,
    PipesContextData,
    PipesDefaultContextLoader,
    PipesMappingParamsLoader,
    PipesMessage,
    PipesMessageWriter,
    PipesMessageWriterChannel,
    PipesParams,
    PipesPartitionKeyRange,
    encode_param,
)

from gcp_pipes.external.context import PipesCloudFunctionContext
from gcp_pipes.protocol import OBSERVATION


@dataclass(frozen=True)
class ReportedAsset:
    """A materialization or an observation that a task reported.

    Attributes:
        asset_key: The asset.
        metadata: The raw values, by name.
        data_version: The data version, or None.
    """

    asset_key: str
    metadata: dict[str, Any]
    data_version: str | None


@dataclass(frozen=True)
class ReportedCheck:
    """The result of an asset check that a task reported.

    Attributes:
        asset_key: The asset.
        check_name: The name of the check.
        passed: Whether it passed.
        severity: `ERROR` or `WARN`.
        metadata: The raw values, by name.
    """

    asset_key: str
    check_name: str
    passed: bool
    severity: str
    metadata: dict[str, Any]


class RecordingPipesContext(PipesCloudFunctionContext):
    """A Pipes context that records what a task reports, instead of sending it to Dagster.

    It checks the reports as in a deployed function. It is ready for use; closing it is optional.

    Args:
        *asset_keys: The keys of the assets of the call.
        partition_key: The partition of the call, or None.
        extras: The values of `pipes.extras`.
        run_id: The ID of the Dagster run.

    Attributes:
        messages: The messages, as `dagster_pipes` would send them.
    """

    def __init__(
        self,
        *asset_keys: str,
        partition_key: str | None = None,
        extras: Mapping[str, Any] | None = None,
        run_id: str = "00000000-0000-0000-0000-000000000000",
    ) -> None:
        self.messages: list[PipesMessage] = []
        keys = list(asset_keys)
        key_range: PipesPartitionKeyRange | None = None
        if partition_key is not None:
            key_range = {"start": partition_key, "end": partition_key}
        data: PipesContextData = {
            "asset_keys": keys or None,
            "code_version_by_asset_key": dict.fromkeys(keys) or None,
            "provenance_by_asset_key": dict.fromkeys(keys) or None,
            "partition_key": partition_key,
            "partition_key_range": key_range,
            "partition_time_window": None,
            "run_id": run_id,
            "job_name": None,
            "retry_number": 0,
            "extras": dict(extras or {}),
        }
        params = {
            DAGSTER_PIPES_CONTEXT_ENV_VAR: encode_param({"data": data}),
            DAGSTER_PIPES_MESSAGES_ENV_VAR: encode_param({}),
        }
        super().__init__(
            PipesMappingParamsLoader(params),
            PipesDefaultContextLoader(),
            _Recorder(self.messages),
        )

    @property
    def logs(self) -> list[tuple[str, str]]:
        """The level and the text of each log line."""
        return [(each["level"], each["message"]) for each in self._params_of("log")]

    @property
    def materializations(self) -> dict[str, ReportedAsset]:
        """The materializations, by asset key."""
        return {
            each["asset_key"]: ReportedAsset(
                each["asset_key"], _raw_values(each["metadata"]), each["data_version"]
            )
            for each in self._params_of("report_asset_materialization")
        }

    @property
    def checks(self) -> dict[str, ReportedCheck]:
        """The results of asset checks, by the name of the check."""
        return {
            each["check_name"]: ReportedCheck(
                each["asset_key"],
                each["check_name"],
                each["passed"],
                each["severity"],
                _raw_values(each["metadata"]),
            )
            for each in self._params_of("report_asset_check")
        }

    @property
    def observations(self) -> list[ReportedAsset]:
        """The observations, in order."""
        return [
            ReportedAsset(each["asset_key"], _raw_values(each["metadata"]), each["data_version"])
            for payload in self._payloads()
            if isinstance(payload, dict) and (each := payload.get(OBSERVATION))
        ]

    @property
    def custom_messages(self) -> list[Any]:
        """The payloads of custom messages, in order."""
        return [
            payload
            for payload in self._payloads()
            if not (isinstance(payload, dict) and OBSERVATION in payload)
        ]

    def _payloads(self) -> Iterator[Any]:
        return (each["payload"] for each in self._params_of("report_custom_message"))

    def _params_of(self, method: str) -> Iterator[Mapping[str, Any]]:
        return (each["params"] or {} for each in self.messages if each["method"] == method)


def _raw_values(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value["raw_value"] for name, value in (metadata or {}).items()}


class _Recorder(PipesMessageWriter["_RecorderChannel"]):
    def __init__(self, messages: list[PipesMessage]) -> None:
        self._messages = messages

    @contextmanager
    def open(self, params: PipesParams) -> Iterator["_RecorderChannel"]:
        yield _RecorderChannel(self._messages)


class _RecorderChannel(PipesMessageWriterChannel):
    def __init__(self, messages: list[PipesMessage]) -> None:
        self._messages = messages

    def write_message(self, message: PipesMessage) -> None:
        self._messages.append(message)
