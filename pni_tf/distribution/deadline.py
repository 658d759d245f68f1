"""A time limit on calls into TensorFlow that never come back.

While TensorFlow connects to other workers it holds Python's lock, for hours if one of
them died: no thread, no alarm and no handler of signals runs. So the C library keeps
the time.
"""

import contextlib
import ctypes
import shlex
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def deadline(seconds: float, message: str, status: int) -> Iterator[None]:
    """Ends the process if what is inside takes longer than `seconds`.

    The message, one line, goes to standard error, and `status` is the exit status.
    Works on Linux; elsewhere there is no limit.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    library = libc  # It has the timers, except in glibc before 2.34.
    if not hasattr(libc, "timer_create"):
        library = ctypes.CDLL("librt.so.1", use_errno=True)
    command = ctypes.c_char_p(f"echo {shlex.quote(message)} >&2".encode())
    timers = [
        _start(library, seconds, libc.system, ctypes.cast(command, ctypes.c_void_p)),
        # Later, so that the line is written; a thread of the C library calls it.
        _start(library, seconds + 1, libc._exit, ctypes.c_void_p(status)),
    ]
    try:
        yield
    finally:
        for timer in timers:
            library.timer_delete(timer)


class _Event(ctypes.Structure):
    """`struct sigevent` of the C library, for a function in a thread of its own."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_char * 32),
    )


class _Interval(ctypes.Structure):
    """`struct itimerspec`: it expires once, after `seconds` and `nanoseconds`."""

    _fields_ = (
        ("period_seconds", ctypes.c_long),
        ("period_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


_SIGEV_THREAD, _CLOCK_MONOTONIC = 2, 1


def _start(library, seconds, function, argument):
    """Lets the C library call a function with one argument after some seconds."""
    address = ctypes.cast(function, ctypes.c_void_p)
    event = _Event(value=argument, notify=_SIGEV_THREAD, function=address)
    timer = ctypes.c_void_p()
    interval = _Interval(seconds=int(seconds), nanoseconds=int(seconds % 1 * 1e9))
    failed = library.timer_create(
        _CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)
    ) or library.timer_settime(timer, 0, ctypes.byref(interval), None)
    if failed:
        raise OSError(ctypes.get_errno(), "cannot set a timer")
    return timer
