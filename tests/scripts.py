"""Runs scripts of benchmarks/ in the test's own process."""

import runpy
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script, *arguments, cwd=None):
    """What a script prints. It runs in this process: to start one takes longer than most of them.

    Raises:
        AssertionError: it failed, with what it says about that.
    """
    told = StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()) as shown,
        redirect_stderr(told),
    ):
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        patch.syspath_prepend(BENCHMARKS)
        if cwd:
            patch.chdir(cwd)
        try:
            runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise AssertionError(f"{told.getvalue()}{ended.code}") from ended
        except Exception as error:
            raise AssertionError(traceback.format_exc()) from error
    return shown.getvalue()
