"""The command line as a process: forked from the test's own, which has imported by then what takes seconds to import."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from subprocess import CompletedProcess

for _name in (
    *("decoding.generate", "fitting.fit", "fitting.fairness", "decoding.cost"),
    *(
        f"evaluation.{name}"
        for name in (
            "stages",
            "reports.report",
            "suites",
            "tail",
            "tuning",
            "selectivity",
            "rewards",
        )
    ),
    *(
        "redteam.attacker",
        "redteam.report",
        "redteam.replays",
        "training.repulse",
        "training.backtracking",
    ),
):
    importlib.import_module(f"sasa.{_name}")


def sasa(*arguments, status=0):
    """Runs `sasa` with these arguments; fails where it ends with another exit status."""
    from sasa.cli import main

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))
                sys.argv = ["sasa", *map(str, arguments)]
                main()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for file in (out, err):
            file.seek(0)
        done = CompletedProcess(["sasa", *arguments], ended, out.read(), err.read())
    assert done.returncode == status, done.stdout + done.stderr
    return done
