"""Finds the task of a request."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from types import ModuleType

from dagster_pipes import PipesContext, to_asset_key_path
from werkzeug.exceptions import BadRequest

from gcp_pipes.external.request import Event, WrongVersionError

Task = Callable[[PipesContext, Event], None]


def find_task(tasks: ModuleType, pipes: PipesContext, event: Event) -> Task:
    """Find the task that the event names, or else the task with the name of the asset.

    Args:
        tasks: The package of the tasks. Each module is a task, with a function `run`.
        pipes: The Pipes context, with the asset of the call.
        event: The request's body. Its optional input `task` is the name of a module.

    Raises:
        BadRequest: The task has no `run`; or the event does not name a task, and the call is not
            for exactly one asset.
        WrongVersionError: The task does not exist.
    """
    name = event.get("task")
    if not name:
        if not pipes.is_asset_step or len(pipes.asset_keys) != 1:
            raise BadRequest(
                "The event lacks `task`, which is required unless the call is for one asset."
            )
        name = to_asset_key_path(pipes.asset_key)[-1]
    module_name = f"{tasks.__name__}.{name}"
    if not str(name).isidentifier() or importlib.util.find_spec(module_name) is None:
        names = sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))
        raise WrongVersionError(
            f"There is no task {name!r}. The tasks are: {', '.join(names) or 'none'}."
        )
    module = importlib.import_module(module_name)
    task: Task | None = getattr(module, "run", None)
    if task is None:
        raise BadRequest(f"{tasks.__name__}/{name}.py has no function run(pipes, event). Add it.")
    return task
