"""The cloud on your machine: emulated storage and the function.

`just demo` runs `demo`, `just dev` runs `dev`, and tests use `cloud`.
"""
