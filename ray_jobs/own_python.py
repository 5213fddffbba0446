"""Python processes that have the modules of this one."""

from __future__ import annotations

import sys

#: The statement that is the command `ray-jobs`.
COMMAND_LINE = "from ray_jobs.cli import main; main()"


def python_command(statement: str, *arguments: str) -> list[str]:
    """Return the command of a process that runs a statement, with `arguments` in `sys.argv[1:]`.

    Not by `python -m`, which looks for modules in the working folder first, whoever wrote what is
    there.
    """
    program = f"import sys; sys.path[:] = {sys.path!r}; {statement}"
    return [sys.executable, "-c", program, *arguments]
