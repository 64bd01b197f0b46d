"""How a process that was started by exec answers its supervisor's question for its Python stacks."""

import faulthandler
import os
import stat
import sys

from wire.pipe import STACKS_FD, STACKS_SIGNAL


def answer() -> bool:
    """From here on the stacks of all threads go to the supervisor's pipe (true) or, without one, to standard error.

    They are written by the signal's own handler in C: also while the loop is blocked or an import hangs.
    """
    try:
        is_given = stat.S_ISFIFO(os.fstat(STACKS_FD).st_mode)
    except OSError:
        is_given = False
    if is_given:
        os.set_inheritable(STACKS_FD, False)  # noqa: FBT003 - the only way to call it
    faulthandler.register(STACKS_SIGNAL, file=STACKS_FD if is_given else sys.stderr, all_threads=True)
    return is_given
