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

    Args:
        pipes: The Pipes context. It says which asset the call is for.
        event: The request's body. `task` in it, if it is there, is the name of a module.

    Raises:
        BadRequest: There is no such task, or it has no `run`; or the event names none, and the call
            is not for one asset alone.
    """
    name = event.get("task") or _name_of_asset(pipes)
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in names:
        raise BadRequest(f"There is no task {name!r}. The tasks are: {', '.join(names) or 'none'}.")
    task: Task | None = getattr(importlib.import_module(f"{__name__}.{name}"), "run", None)
    if task is None:
        raise BadRequest(
            f"cloud_function/tasks/{name}.py has no function run(pipes, event). Add it."
        )
    return task


def _name_of_asset(pipes: PipesContext) -> str:
    if not pipes.is_asset_step or len(pipes.asset_keys) != 1:
        raise BadRequest("The event lacks `task`, which a call needs that is not for one asset.")
    return to_asset_key_path(pipes.asset_key)[-1]
