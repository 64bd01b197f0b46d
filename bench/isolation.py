"""What a job costs in a task, in a thread and in a process of its own: `python -m bench.isolation [--jobs 200]`.

One job after the other, from its offer to its report, under a real supervisor; processor time is that of the
supervisor and everything below it.
"""

import argparse
import os
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.support.supervisor_process import SupervisorProcess
from tests.support.worker_socket_server import WorkerSocketServer

ACTIONS = {"task": "bench.noop", "thread": "bench.thread", "process": "bench.process"}
TICK = os.sysconf("SC_CLK_TCK")
WARM = 10


def processor_time(pid: int) -> float:
    """Seconds of a process, of its living descendants, and of those that they have waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = sum(int(field) for field in fields[11:15]) / TICK
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            own += processor_time(int(child))
    return own


def measure(server: WorkerSocketServer, supervisor: int, action: str, jobs: int) -> tuple[list[float], float]:
    """Milliseconds of each job, and processor milliseconds a job."""
    for _ in range(WARM):
        server.offer(action, {})
        server.wait_for_report()
    before, latencies = processor_time(supervisor), []
    for _ in range(jobs):
        began = time.perf_counter()
        server.offer(action, {})
        assert server.wait_for_report().get("status", "completed") == "completed"
        latencies.append((time.perf_counter() - began) * 1000)
    return sorted(latencies), (processor_time(supervisor) - before) * 1000 / jobs


def main() -> None:
    """Prints one line for each isolation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        quiet = {"log_level": "warning"}
        with WorkerSocketServer(directory) as server:
            settings = {"modules": ["bench.handlers"], "supervisor": quiet, "concurrency": 4}
            with SupervisorProcess(directory / "supervisor", server, **settings) as supervisor:  # type: ignore[arg-type]
                for isolation, action in ACTIONS.items():
                    latencies, processor = measure(server, supervisor.process.pid, action, jobs)
                    p95 = latencies[round(0.95 * (len(latencies) - 1))]
                    print(
                        f"isolation {isolation:<8} median {statistics.median(latencies):6.2f} ms  p95 {p95:6.2f} ms  "
                        f"processor time {processor:5.2f} ms a job"
                    )
                assert supervisor.terminate() == 0


if __name__ == "__main__":
    main()
