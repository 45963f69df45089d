"""The command line: each command is a thin shell around what the package does.

    app          what all commands share: exit codes, errors in one line, output
    options      the options, each declared once
    sending      complete, estimate
    checkpoints  status, wait, cancel, results, usage, runs, report, purge
    local        doctor, serve, demo

Data goes to stdout and nothing else does; progress, messages and errors go to stderr, without a
traceback. Heavy libraries are imported by the command that needs them, so that --help is quick.
"""

from batchframe.cli import checkpoints, local, sending
from batchframe.cli.app import Exit, app

__all__ = ["Exit", "app", "checkpoints", "local", "sending"]
