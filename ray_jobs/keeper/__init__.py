"""The zygote and its keepers: the processes between a supervisor and a job's entrypoint.

Standard library only. The source of the package is handed to `python -I -S -c`, so that it runs on
nodes where ray_jobs isn't installed.

One *zygote* per node listens on a Unix socket and forks a *keeper* per job. A keeper is the parent
of the entrypoint and a subreaper: whatever the job starts, in sessions of its own too, stays below
it and ends with it. It outlives the supervisor that asked for it; another one finds it by its
control socket, and its outcome in the status file. What a killed keeper leaves, the zygote ends.

Protocol, one JSON object a line. To the zygote: a spawn order. To a keeper: `{"op": "stop",
"signal": 15, "wait_s": 3.0}`; a later one only makes the wait shorter. From a keeper: the status
record, once on connection and once at the end. Its `state` is one of
  running           the entrypoint runs
  exited            it ended, and every process that it started is gone
  failed_to_start   it could not be executed
  exists            (answer to a spawn order only) this attempt was started before, or given up
Who connects to the zygote's other socket gets a line once nothing is left of killed keepers.
"""

from __future__ import annotations

from pathlib import Path

from ray_jobs.keeper.files import CONTROL_SOCKET, STATUS_FILE
from ray_jobs.keeper.keeper import STATUS_BYTES

__all__ = ["CONTROL_SOCKET", "STATUS_BYTES", "STATUS_FILE", "zygote_source"]

#: In the order in which they import each other.
_MODULES = ("clock", "files", "processes", "sockets", "entrypoint", "keeper", "zygote")


def zygote_source() -> str:
    """Return a program for `python -I -S -c`.

    Its arguments are those of `zygote.run_zygote`: folder, name of the socket, pid of the raylet.
    """
    folder = Path(__file__).parent
    sources = {f"{__name__}.{name}": (folder / f"{name}.py").read_text() for name in _MODULES}
    return f"""
import sys
import types
for name, source in {sources!r}.items():
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, name, "exec"), module.__dict__)
module.run_zygote(sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""
