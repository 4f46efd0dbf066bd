"""The usual way to many partitions: a dynamic output, mapped to a step and a process for each."""

import os
from collections.abc import Iterator

import dagster as dg
from common import make_client


@dg.op(out=dg.DynamicOut(str))
def keys() -> Iterator[dg.DynamicOutput[str]]:
    """The partitions."""
    for number in range(int(os.environ["PARTITIONS"])):
        yield dg.DynamicOutput(str(number), mapping_key=str(number))


@dg.op
def call(context: dg.OpExecutionContext, key: str) -> None:
    """Call the function for one of them."""
    event = {"task": "nap", "asset": f"usual_{key}"}
    make_client().run(context=context, function_url=os.environ["NAP_URL"], event=event)


@dg.job(executor_def=dg.multiprocess_executor)
def usual() -> None:
    """Call the function for each of them."""
    keys().map(call)
