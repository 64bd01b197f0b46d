"""The control planes of a campaign and their store: a file, or a PostgreSQL server. Acts."""

import asyncio
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.campaign.store.schedule import CRASH, CUT, CUT_ALL, KILL, KILL_ALL, REPLICAS, RESTART, Fault, StoreKind
from tests.support.balancer import Balancer
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.postgres_cluster import Cluster

LEASES = ("--heartbeat-cadence", "2s", "--log-level", "info")


class Site:
    """Replicas behind a balancer, on one store; enter it to start them. `plane` is where workers are to connect."""

    def __init__(self, store: StoreKind, directory: Path, lease_duration: float) -> None:
        self.plane: ControlPlaneProcess
        self.port = 0
        self._replicas: list[ControlPlaneProcess] = []
        self._cluster: Cluster | None = None
        self._database = ""
        self._store = store
        self._directory = directory
        self._arguments = ("--lease-duration", f"{lease_duration:g}s", *LEASES)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        url = None
        if self._store == "postgresql":
            self._cluster = Cluster(durable=True)
            self._stack.callback(self._cluster.close)
            self._database = self._cluster.new_database()
            url = self._cluster.url(self._database)
        for number in range(1, REPLICAS[self._store] + 1):
            key_file = self._replicas[0].key_file if self._replicas else None
            directory = self._directory / f"control-plane-{number}"
            replica = ControlPlaneProcess(directory, *self._arguments, store_url=url, key_file=key_file)
            self._replicas.append(self._stack.enter_context(replica))
        self.plane = self._replicas[0]
        self.port = self.plane.port
        if len(self._replicas) > 1:
            balancer = self._stack.enter_context(Balancer([replica.port for replica in self._replicas]))
            self.plane.url, self.port = balancer.url, balancer.port
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def commit(self, fault: Fault) -> None:
        """Returns when what was stopped has been started again; whether it works again is another question."""
        if fault.kind == KILL:
            await self._kill(self._replicas[fault.victim % len(self._replicas)])
        elif fault.kind == KILL_ALL:
            await asyncio.gather(*(self._kill(replica) for replica in self._replicas))
        elif fault.kind in (RESTART, CRASH):
            await self._restart(signal.SIGINT if fault.kind == RESTART else signal.SIGQUIT)
        elif fault.kind in (CUT, CUT_ALL):
            await asyncio.to_thread(self._cut, None if fault.kind == CUT_ALL else fault.victim)

    def check(self) -> list[str]:
        """What `mobius-control-plane check` finds when everything has stopped, in its words; none if all is well."""
        for replica in self._replicas:
            replica.terminate()
        try:
            self.plane.command("check")
        except subprocess.CalledProcessError as error:
            return [f"check: {line}" for line in (error.stdout + error.stderr).splitlines()]
        return []

    async def _kill(self, replica: ControlPlaneProcess) -> None:
        replica.kill()
        await asyncio.to_thread(replica.start)

    async def _restart(self, number: signal.Signals) -> None:
        assert self._cluster is not None
        await asyncio.to_thread(self._cluster.stop, number)
        # It ends with the thread that starts it.
        self._cluster.launch()
        await asyncio.to_thread(self._cluster.wait_until_ready)

    def _cut(self, victim: int | None) -> None:
        assert self._cluster is not None
        ours = f"application_name LIKE 'mobius%' AND datname = '{self._database}'"
        pids = self._cluster.sql(f"SELECT pid FROM pg_stat_activity WHERE {ours} ORDER BY pid").split()
        chosen = pids if victim is None else pids[victim % len(pids) :][:1]
        self._cluster.sql("".join(f"SELECT pg_terminate_backend({pid});" for pid in chosen))
