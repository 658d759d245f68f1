"""Runs scripts one after the other in this process, which imports TensorFlow once.

    python script_host.py < JOBS > RESULTS

Jobs are a JSON list of `[path, *arguments]`. A first word `--parse` instead of a path
stops a script after it has read its command line. Results are a JSON list of
`{"status", "output", "errors", "seconds"}`.
"""

import argparse
import contextlib
import io
import json
import os
import runpy
import sys
import time
import traceback
from pathlib import Path
from unittest import mock

from absl import logging  # noqa: F401, whose flags must not go with those of a command
from absl.testing import flagsaver


def stop_after_parsing(parser, *args, **kwargs):
    parse(parser, *args, **kwargs)
    sys.exit("parsed")


parse = argparse.ArgumentParser.parse_args


def run(job):
    only_parse = job[0] == "--parse"
    script, *_ = argv = job[only_parse:]
    output, errors = io.StringIO(), io.StringIO()
    start, status = time.perf_counter(), 0
    stop = contextlib.nullcontext()
    if only_parse:
        stop = mock.patch.object(
            argparse.ArgumentParser, "parse_args", stop_after_parsing
        )
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "path", [str(Path(script).parent), *sys.path]),
        flagsaver.flagsaver(),  # It removes the flags that a command defines.
        stop,
    ):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except Exception:
            traceback.print_exc(file=errors)
            status = 1
    if only_parse:
        status = int(status != "parsed")
    seconds = time.perf_counter() - start
    return {
        "status": status,
        "output": output.getvalue(),
        "errors": errors.getvalue(),
        "seconds": seconds,
    }


if __name__ == "__main__":
    jobs = json.load(sys.stdin)
    # Libraries and child processes print to the file descriptors.
    with os.fdopen(os.dup(1), "w") as results:
        os.dup2(2, 1)
        json.dump([run(job) for job in jobs], results)
