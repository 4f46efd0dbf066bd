"""The business logic: each module here is a task, with a function `run(pipes, event)`.

A task is found by its module's name. To add one, add a module.
"""

import importlib
import pkgutil
from collections.abc import Callable

from dagster_pipes import PipesContext, to_asset_key_path
from werkzeug.exceptions import BadRequest

from gcp_pipes import Event

Task = Callable[[PipesContext, Event], None]


def find_task(pipes: PipesContext, event: Event) -> Task:
    """The task that the event names as `task`, or else the one named like the asset.

    Raises:
        BadRequest: There is no such task.
    """
    name = event.get("task") or to_asset_key_path(pipes.asset_key)[-1]
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in names:
        raise BadRequest(f"There is no task {name!r}. The tasks are: {', '.join(names) or 'none'}.")
    task: Task = importlib.import_module(f"{__name__}.{name}").run
    return task
