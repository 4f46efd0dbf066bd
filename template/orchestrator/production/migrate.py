"""Creates the tables of the database, or brings them to the version of this Dagster.

After a rollback, the tables may be those of a newer version. They stay as they are: an older
version can use them, as long as migrations only add to them.
"""

from alembic.util.exc import CommandError
from dagster import DagsterInstance


def migrate(instance: DagsterInstance) -> None:
    """Migrate the tables of an instance, unless a newer version has done so.

    Args:
        instance: The instance.
    """
    try:
        instance.upgrade(print)
    except CommandError as error:
        if "Can't locate revision" not in str(error):
            raise
        print(f"The tables are those of a newer Dagster, and stay as they are ({error}).")


if __name__ == "__main__":
    with DagsterInstance.get() as of_production:
        migrate(of_production)
