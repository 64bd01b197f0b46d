"""`python -m mobius_cli.tied_process PARENT_PID PROGRAM ARGUMENT...`: become PROGRAM, and be asked to stop (SIGTERM)
when the parent ends, however it ends.

A supervisor that outlived a killed quickstart would keep its ports and its state directory without anybody knowing.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process. Exits 70 when the parent is gone already."""
    parent, *program = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        sys.exit(f"mobius: prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    # The parent may have ended before the request was made: then no signal will come.
    if os.getppid() != int(parent):
        sys.exit(70)
    os.execv(program[0], program)  # noqa: S606 - our caller's own program, and no shell is wanted


if __name__ == "__main__":
    main()
