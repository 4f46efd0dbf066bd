"""The business logic: each module here is a task, with a function `run(pipes, event)`.

A task is found by the name of its module. To add a task, add a module.
"""
