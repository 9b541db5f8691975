"""Every performance claim as a command: `python -m bench NAME`.

A benchmark is a module with a function `run(options) -> Result` and a first docstring line that says what it claims. It
prints progress to standard error and ends with one JSON line on standard output:

    {"name", "value", "unit", "goal", "better": "lower" | "higher", "ok", "details"}

and, where there is such a thing, "comparison" (what a peer or limit took in the same run) and "series". `all` runs each
in a process of its own with a deadline, adds "seconds" and says what failed (`bench.report_record`); `--report FILE`
makes one HTML page of it, `--report FILE --from FILE` of what was printed before.

Goals are aims: a missed one is reported, it fails nothing.
"""
