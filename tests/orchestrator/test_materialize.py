"""What `just demo` materializes."""

import dagster as dg
from local_cloud.materialize import runs


def test_an_asset_without_partitions_yet_is_left_out_until_there_is_one() -> None:
    shops = dg.DynamicPartitionsDefinition(name="shops")

    @dg.asset(partitions_def=shops)
    def sales() -> None: ...

    @dg.asset
    def people() -> None: ...

    definitions = dg.Definitions([people, sales])
    with dg.DagsterInstance.ephemeral() as instance:
        before = list(runs(definitions, instance))
        instance.add_dynamic_partitions("shops", ["Utrecht", "Delft"])
        after = list(runs(definitions, instance))

    assert before == [([people.key], {})]
    assert after == [*before, ([sales.key], {"partition_key": "Delft"})]
