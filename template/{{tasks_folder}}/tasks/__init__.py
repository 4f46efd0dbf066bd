"""The tasks: each module is one, and has a function `run(pipes, event)`."""
