"""The tasks: each module is one, and has `run(pipes, event)`."""
