"""A function that opens Pipes with the message writer of `dagster_pipes`."""

import flask
from dagster_pipes import (
    PipesContext,
    PipesExtras,
    PipesGCSMessageWriter,
    PipesMappingParamsLoader,
    open_dagster_pipes,
)
from google.cloud import storage


class Writer(PipesGCSMessageWriter):
    """The writer, whose message `opened` says what the event says."""

    def __init__(self, opened: PipesExtras) -> None:
        super().__init__(client=storage.Client())
        self._opened = opened

    def get_opened_extras(self) -> PipesExtras:
        """What the message `opened` says."""
        return self._opened


def main(request: flask.Request) -> str:
    """Log lines, and report a materialization."""
    event = request.get_json()
    with open_dagster_pipes(
        params_loader=PipesMappingParamsLoader(event),
        message_writer=Writer(event.get("opened", {})),
    ) as pipes:
        for number in range(event["lines"]):
            pipes.log.info(f"{pipes.asset_key} line {number}")
        pipes.report_asset_materialization(metadata={"writer": "stock"}, data_version="1")
    PipesContext._instance = None  # or else the next request would find this one's context
    return "OK"
