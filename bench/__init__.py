"""Every performance claim as a command: `python -m bench NAME`.

A benchmark is a module with a function `run(options) -> Result` and a first docstring line that says what it claims. It
prints progress to standard error and ends with one JSON line on standard output:

    {"name", "value", "unit", "goal", "better": "lower" | "higher", "ok", "details"}

Goals are aims: a missed one is reported, it fails nothing.
"""
