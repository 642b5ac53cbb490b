"""A time limit for what may hang: the user's own code, or what it makes the device do."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adam_jax.race.errors import UsageError

_PATIENCE = 2.0  # seconds for Python code to see that it is interrupted


@contextmanager
def within(
    seconds: float | None, what: str, last: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Interrupts what takes longer, as Ctrl-C does, and ends the process if nothing hears it.

    As nothing does that waits for the device.

    Args:
      seconds: the limit; `None` for none.
      what: what is limited, such as "the search".
      last: what is to be done before the process is ended, in another thread.

    Raises:
      UsageError: if it was interrupted.
    """
    if seconds is None:
        yield
        return
    line = f"{what} took more than the {seconds:g} s of --time-limit"
    expired, done = threading.Event(), threading.Event()
    deciding = threading.Lock()  # which of the two came first

    def watch() -> None:
        done.wait(min(seconds, threading.TIMEOUT_MAX))
        with deciding:
            if done.is_set():
                return
            expired.set()
            _thread.interrupt_main()
        if not done.wait(_PATIENCE):
            try:
                last()
                sys.stdout.flush()
            finally:
                print(f"adam-jax: error: {line}", file=sys.stderr, flush=True)
                os._exit(2)

    # A shell lets what it runs in the background not hear Ctrl-C; of the time it should.
    deaf = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if deaf:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            threading.Thread(target=watch, daemon=True).start()
            yield
        finally:  # where an interruption may still come that was sent just before
            with deciding:
                done.set()
    except KeyboardInterrupt:
        if expired.is_set():
            raise UsageError(line) from None
        raise
    finally:
        done.set()
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
