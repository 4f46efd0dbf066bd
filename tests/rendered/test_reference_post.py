"""The calls of the reference post work in a rendered project, under their names.

The post: "How to use Dagster to orchestrate Google Cloud Functions (or any other external execution
environment)", Xebia, June 2024.
"""

import json
from pathlib import Path

from conftest import Render, run

# A function that opens Pipes by itself, with nothing of this project but the message writer.
FUNCTION = """
import google.cloud.storage
import polars as pl
from dagster_pipes import PipesContext, PipesMappingParamsLoader, open_dagster_pipes
from gcp_pipes.external import PipesCloudStorageMessageWriter


def main(request):
    event = request.get_json()
    with open_dagster_pipes(
        params_loader=PipesMappingParamsLoader(event),
        message_writer=PipesCloudStorageMessageWriter(client=google.cloud.storage.Client()),
    ) as pipes:
        pipes.log.warning(f"for {pipes.asset_key}")
        table_location = f"{event['dl_bucket']}/{pipes.asset_key}"
        pl.DataFrame({"number": [1, 2, 3]}).write_delta(table_location, mode="append")
        pipes.report_asset_materialization(
            metadata={"table_location": table_location}, data_version="alpha"
        )
    PipesContext._instance = None
    return "OK", 200
"""

# An orchestrator whose definitions are all in one place, with objects for resources.
ORCHESTRATOR = """
import json
import os
import sys
from pathlib import Path

import dagster as dg
import google.cloud.storage
from local_cloud.cloud import local_cloud
from gcp_pipes.orchestrator import PipesCloudFunctionClient, PipesCloudStorageMessageReader


def definitions(function_url, dl_bucket, messages_bucket):
    @dg.asset(description="A cloud function that writes a Delta table.")
    def cloud_function_pipes_asset(
        context: dg.AssetExecutionContext, pipes_function_client: PipesCloudFunctionClient
    ) -> dg.MaterializeResult:
        return pipes_function_client.run(
            context=context, function_url=function_url, event={"dl_bucket": dl_bucket}
        ).get_materialize_result()

    return dg.Definitions(
        assets=[cloud_function_pipes_asset],
        resources={
            "pipes_function_client": PipesCloudFunctionClient(
                message_reader=PipesCloudStorageMessageReader(
                    bucket=messages_bucket, client=google.cloud.storage.Client()
                )
            )
        },
    )


with local_cloud(Path(sys.argv[1])) as settings, dg.DagsterInstance.ephemeral() as instance:
    os.environ.update(settings)
    job = definitions(
        settings["FUNCTION_URL"], settings["LAKE_URI"], settings["MESSAGES_BUCKET"]
    ).resolve_implicit_global_asset_job_def()
    runs = [job.execute_in_process(instance=instance) for _ in range(2)]
    for result in runs:
        [event] = result.get_asset_materialization_events()
        materialization = event.step_materialization_data.materialization
        print("RESULT", json.dumps({
            "asset": materialization.asset_key.to_user_string(),
            "table_location": materialization.metadata["table_location"].value,
            "data_version": materialization.tags["dagster/data_version"],
            "warnings": [
                entry.user_message
                for entry in instance.all_logs(result.run_id)
                if entry.level == 30 and entry.dagster_event is None
            ],
        }))
"""


def test_the_calls_of_the_reference_work_under_their_names(render: Render, tmp_path: Path) -> None:
    project = render()
    (project / "cloud_function" / "main.py").write_text(FUNCTION)
    script = tmp_path / "orchestrator.py"
    script.write_text(ORCHESTRATOR)

    printed = run(
        *("uv", "run", "python", str(script), str(tmp_path / "buckets")),
        cwd=project / "orchestrator",
    ).stdout

    results = [json.loads(line[7:]) for line in printed.splitlines() if line.startswith("RESULT ")]
    assert results == 2 * [
        {
            "asset": "cloud_function_pipes_asset",
            "table_location": "gs://my-gcp-project-data-lake/cloud_function_pipes_asset",
            "data_version": "alpha",
            "warnings": ["for cloud_function_pipes_asset"],
        }
    ]
