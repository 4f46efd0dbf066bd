"""The cloud on one machine: emulated storage, the function, and what runs them together.

`demo` and `dev` are what `just demo` and `just dev` start; tests use `cloud`.
"""
