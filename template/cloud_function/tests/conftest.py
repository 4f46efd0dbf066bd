"""Runs tasks without a server and without Dagster."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dagster_pipes import (
    DAGSTER_PIPES_CONTEXT_ENV_VAR,
    DAGSTER_PIPES_MESSAGES_ENV_VAR,
    PipesContext,
    PipesDefaultContextLoader,
    PipesDefaultMessageWriter,
    PipesMappingParamsLoader,
    encode_param,
)
from local_cloud.fixtures import context_data


@pytest.fixture
def run_task(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the task of an asset, and returns the params of its messages, by their methods."""

    def run(
        asset_key: str, event: dict[str, Any], partition_key: str | None = None
    ) -> dict[str, Any]:
        messages = tmp_path / "messages"
        params = {
            DAGSTER_PIPES_CONTEXT_ENV_VAR: encode_param(
                {"data": context_data([asset_key], partition_key)}
            ),
            DAGSTER_PIPES_MESSAGES_ENV_VAR: encode_param({"path": str(messages)}),
        }
        with PipesContext(
            PipesMappingParamsLoader(params),
            PipesDefaultContextLoader(),
            PipesDefaultMessageWriter(),
        ) as pipes:
            importlib.import_module(f"tasks.{asset_key}").run(pipes, event)
        sent = map(json.loads, messages.read_text().splitlines())
        return {message["method"]: message["params"] for message in sent}

    return run
