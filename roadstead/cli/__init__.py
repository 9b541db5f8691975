"""The `roadstead` command: a module a command, all alike.

Exit codes:
    0    done
    1    the operation failed or was refused
    2    the command line or the configuration is wrong
    3    the system cannot be reached
    130  interrupted

`--json` prints one JSON document, or one a line for what goes on; everything meant for people goes to standard error
then.
"""

from roadstead.cli.main import main

__all__ = ["main"]
