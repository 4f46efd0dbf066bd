"""The cloud on your machine: emulated storage, and what runs the tasks.

`just demo` runs `demo`, `just dev` runs `dev`, and tests use `cloud`.
"""
