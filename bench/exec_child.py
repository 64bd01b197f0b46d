"""The same child started by exec instead of by its mold: `python -m bench.exec_child SETTINGS`, its pipe on fd 3."""

import socket
import sys
from pathlib import Path

import msgspec

import bench.handlers  # noqa: F401 - what the mold would have imported
from wire import build, pipe
from worker_child import __main__ as child

if __name__ == "__main__":
    spawn = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=pipe.Spawn)
    channel = socket.socket(fileno=pipe.MOLD_FD)
    jobs, _unanswered = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.exit(child.run(spawn, channel, jobs, build_id=build.build_id(), late_modules=[]))
