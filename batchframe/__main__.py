"""`batchframe` and `python -m batchframe`: the command line as a process."""

import sys
from io import TextIOWrapper

from batchframe.cli import app

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        # A sign of an answer that this terminal's encoding lacks is escaped, and ends nothing.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="batchframe")


if __name__ == "__main__":
    main()
