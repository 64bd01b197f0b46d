"""PostgreSQL restarts, crashes, cuts connections and leaves a COMMIT unanswered: callers are told the truth."""

import asyncio
import contextlib
import os
import signal

import asyncpg
import psutil
import pytest

from control_plane.domain.enqueue import NewJob
from control_plane.domain.model import Selector
from control_plane.domain.store import ClaimOrder, LeaseTerms
from control_plane.errors import StoreUnavailable
from control_plane.store import postgres_connections, postgres_unanswered, postgres_writer
from control_plane.store.postgres import PostgresStore
from tests.support.commit_proxy import CommitProxy
from tests.support.postgres_cluster import PASSWORD, USER, Cluster, Standby
from tests.support.store_scenario import PostgresPlace, Scenario, action, at, scenario
from wire.frames import Report


@pytest.fixture
def place(cluster):
    made = PostgresPlace(cluster)
    yield made
    made.remove()


@pytest.fixture(scope="module")
def durable():
    """A server of our own, which flushes."""
    made = Cluster(durable=True)
    yield made
    made.close()


async def start(cluster):
    cluster.launch()
    await asyncio.to_thread(cluster.wait_until_ready)


class ProxiedPlace(PostgresPlace):
    """The same database by way of a proxy, with a password."""

    def __init__(self, cluster, proxy, folder):
        super().__init__(cluster)
        self.password_file = folder / "password"
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(PASSWORD)
        self.url = f"postgresql://{USER}@127.0.0.1:{proxy.port}/{self.database}?sslmode=disable"

    def store(self, terms):
        return PostgresStore(self.url, terms, password_file=self.password_file)


@pytest.fixture
async def proxied(cluster, tmp_path):
    async with CommitProxy(cluster.port) as proxy:
        place = ProxiedPlace(cluster, proxy, tmp_path)
        async with scenario(place) as s:
            await s.publish("a", [action(retry={"max_attempts": 2})])
            yield proxy, s
    place.remove()


class Load:
    """Starts, claims and reports until it is told to stop, and remembers what it was acknowledged."""

    def __init__(self, s: Scenario):
        self.s = s
        self.runs = []
        self.reported = []
        self.refused = 0
        self.stopping = False
        self.progress = asyncio.Event()

    async def start_runs(self):
        while not self.stopping:
            await self.attempt(self.start())

    async def work(self):
        while not self.stopping:
            await self.attempt(self.claim_and_report())

    async def attempt(self, doing):
        try:
            await doing
        except StoreUnavailable:
            self.refused += 1
            await asyncio.sleep(0.02)
        self.progress.set()

    async def start(self):
        run = await self.s.store.start_run(self.s.project.id, "a")
        self.runs.append(run.id)

    async def claim_and_report(self):
        order = ClaimOrder(
            project_id=self.s.project.id,
            session_id=self.s.session.id,
            worker_instance_id="w-1",
            selector=Selector(),
            limit=3,
            lease_tokens=[f"lease {next(self.s.numbers)}" for _ in range(3)],
        )
        for lease in await self.s.store.claim(order):
            token = lease.lease_token
            report = Report(job_id=lease.job.id, lease_token=token, result={"by": token})
            while True:
                try:
                    (outcome,) = await self.s.store.reports(self.s.project.id, [report])
                except StoreUnavailable:
                    self.refused += 1
                    await asyncio.sleep(0.02)
                else:
                    break
            # It was sent again as long as nobody answered: then the answer that got lost may have been the first.
            assert outcome.verdict in ("accepted", "duplicate")
            self.reported.append((lease.job.id, lease.lease_token))

    async def more(self, number):
        """Until so many more reports are acknowledged."""
        wanted = len(self.reported) + number
        async with asyncio.timeout(60):
            while len(self.reported) < wanted:
                self.progress.clear()
                await self.progress.wait()

    async def check(self):
        """What was acknowledged is there, once; and no job is stuck with somebody who does not know of it."""
        store, project = self.s.store, self.s.project
        assert len({job_id for job_id, _ in self.reported}) == len(self.reported)
        for run_id in self.runs:
            await store.run(project.id, run_id)
        for job_id, token in self.reported:
            job = await store.job(project.id, job_id)
            assert (job.status, job.result, job.claim_attempt) == ("completed", {"by": token}, 1)
            events = await store.events(project.id, job.run_id, since=0, limit=99)
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert [event.event_type for event in events].count("action.result") == 1
        # What was leased by a COMMIT without an answer is still being given back.
        async with asyncio.timeout(30):
            while await self.s.read("SELECT count(*) FROM jobs_claimed") != [(0,)]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def loaded(s, disturb):
    """Load the store while it is disturbed, let it finish what it holds, and check."""
    load = Load(s)
    tasks = [asyncio.create_task(load.start_runs()) for _ in range(4)]
    tasks += [asyncio.create_task(load.work()) for _ in range(4)]
    await load.more(50)
    await disturb(load)
    await load.more(50)
    load.stopping = True
    await asyncio.gather(*tasks)
    await load.check()
    return load


# --- connections that break


async def test_cut_connections_are_made_good_and_nobody_is_told(place, monkeypatch):
    # A busy machine may need longer for ten new connections.
    monkeypatch.setattr(postgres_writer, "PATIENCE", 30.0)

    async def cut(load):
        for _ in range(10):
            place.cut()
            await load.more(10)

    async with scenario(place) as s:
        await s.publish("a", [action()])
        before = s.store._leases_lapse_from
        load = await loaded(s, cut)
        assert load.refused == 0
        # Nobody could heartbeat for a moment.
        assert s.store._leases_lapse_from > before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
async def test_a_restart_of_postgresql_loses_nothing_that_was_acknowledged(durable, number):
    place = PostgresPlace(durable)

    async def restart(load):
        for _ in range(2):
            await asyncio.to_thread(durable.stop, number)
            await start(durable)
            await load.more(20)

    async with scenario(place) as s:
        await s.publish("a", [action()])
        await loaded(s, restart)
    place.remove()


async def test_a_database_that_stays_away_is_told_soon_then_at_once_and_comes_back_by_itself(durable, monkeypatch):
    monkeypatch.setattr(postgres_writer, "PATIENCE", 0.5)
    place = PostgresPlace(durable)
    async with scenario(place) as s:
        await s.publish("a", [action()])
        await asyncio.to_thread(durable.stop)
        loop = asyncio.get_running_loop()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await s.store.ping()
        since = loop.time()
        for _ in range(1000):
            with pytest.raises(StoreUnavailable):
                await s.store.ping()
        assert loop.time() - since < 20
        with pytest.raises(StoreUnavailable):
            await s.store.projects()
        await start(durable)
        async with asyncio.timeout(60):
            while True:
                try:
                    await s.store.ping()
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
        assert (await s.start("a")).status == "suspended"
        assert s.store._leases_lapse_from > s.store.now()
    place.remove()


class TwoServers(PostgresPlace):
    """A primary and its standby; the URL names both."""

    def __init__(self, primary, standby):
        super().__init__(primary)
        self.url = (
            f"postgresql://{USER}@/{self.database}?host={primary.directory},{standby.directory}"
            f"&port={primary.port},{standby.port}"
        )


async def test_a_standby_takes_over_and_nothing_that_was_acknowledged_is_missing():
    primary = Cluster(durable=True)
    standby = None
    try:
        standby = Standby(primary)
        place = TwoServers(primary, standby)

        async def fail_over(load):
            await asyncio.to_thread(primary.stop, signal.SIGQUIT)
            await asyncio.to_thread(standby.promote)
            await load.more(50)

        async with scenario(place) as s:
            await s.publish("a", [action()])
            await loaded(s, fail_over)
        assert standby.sql("SELECT pg_is_in_recovery()").strip() == "f"
    finally:
        for server in (primary, standby):
            if server is not None:
                server.close()


@contextlib.contextmanager
def standing_still(cluster):
    """All processes of the server are stopped, so that it keeps its connections and answers none."""
    stopped = [psutil.Process(cluster.process.pid)]
    try:
        # The one that forks first, and then until there are no more: what it was forking is found by another look.
        stopped[0].suspend()
        while fresh := [each for each in stopped[0].children(recursive=True) if each not in stopped]:
            stopped += fresh
            for process in fresh:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


async def test_a_server_that_stands_still_is_told_and_recovered_from(durable, monkeypatch):
    place = PostgresPlace(durable)

    async def stand_still(load):
        monkeypatch.setattr(postgres_connections, "COMMAND_TIMEOUT", 1.0)
        monkeypatch.setattr(postgres_connections, "CONNECT_TIMEOUT", 0.5)
        monkeypatch.setattr(postgres_writer, "PATIENCE", 0.5)
        place.cut()
        await load.more(10)
        with standing_still(durable):
            refused = load.refused
            async with asyncio.timeout(60):
                while load.refused < refused + 10:
                    load.progress.clear()
                    await load.progress.wait()
            with pytest.raises(StoreUnavailable):
                await load.s.store.projects()
            # What connects from now on has all the time that it needs.
            monkeypatch.undo()

    async with scenario(place) as s:
        await s.publish("a", [action()])
        await loaded(s, stand_still)
    place.remove()


async def test_what_no_standby_has_is_not_acknowledged_where_one_must_have_it(durable, monkeypatch):
    """A wait that is cut short would end in a COMMIT with a warning, and whoever fails over would have lost it."""
    monkeypatch.setitem(postgres_connections._SETTINGS, "statement_timeout", "2s")
    monkeypatch.setattr(postgres_connections, "COMMAND_TIMEOUT", 3.0)
    monkeypatch.setattr(postgres_writer, "PATIENCE", 3.0)
    place = PostgresPlace(durable)
    async with scenario(place) as s:
        await s.publish("a", [action()])
        before = await s.start("a")
        durable.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        durable.sql("SELECT pg_reload_conf()")
        try:
            for asked in (s.start("a"), s.store.create_project("other", "Other")):
                with pytest.raises(StoreUnavailable):
                    await asked
        finally:
            durable.sql("SET synchronous_commit = local; ALTER SYSTEM RESET synchronous_standby_names")
            durable.sql("SELECT pg_reload_conf()")
        async with asyncio.timeout(60):
            while True:
                try:
                    run = await s.start("a")
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
        runs = await s.read("SELECT id FROM runs")
        assert {(before.id,), (run.id,)} <= set(runs)
    place.remove()


async def test_idle_connections_that_broke_meanwhile_are_no_fault(place):
    async with scenario(place) as s:
        await asyncio.gather(*(s.store.projects() for _ in range(8)))
        await s.write(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            f" AND datname = '{place.database}'"
        )
        assert [project.handle for project in await s.store.projects()] == ["default"]
        await s.publish("a", [action()])


async def test_a_database_that_takes_no_writes_is_told_and_recovered_from(place):
    async with scenario(place) as s:
        await s.publish("a", [action()])
        await s.write(f"ALTER DATABASE {place.database} SET default_transaction_read_only = on")
        place.cluster.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{place.database}'")
        with pytest.raises(StoreUnavailable):
            await s.start("a")
        place.cluster.sql(f"ALTER DATABASE {place.database} SET default_transaction_read_only = off")
        async with asyncio.timeout(60):
            while True:
                try:
                    run = await s.start("a")
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
        assert run.status == "suspended"


async def test_whoever_leaves_a_transaction_open_is_ended_by_the_server(place):
    """An idle snapshot keeps every dead row of the hot tables alive."""
    async with scenario(place) as s:
        for name, value in (
            ("idle_in_transaction_session_timeout", "10s"),
            ("lock_timeout", "10s"),
            ("statement_timeout", "15s"),
        ):
            assert await s.read(f"SELECT current_setting('{name}')") == [(value,)]
        connection = await s.store.database.connect(idle_in_transaction_session_timeout="100ms")
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        await connection.execute("BEGIN")
        async with asyncio.timeout(30):
            await ended.wait()


# --- a COMMIT without an answer


def clock(s):
    """The store's own time, as a scenario counts it."""
    return (s.store.now() - at(0)) / 1e6


async def given_back(s):
    """The job that was leased to nobody, once it can be claimed again."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(StoreUnavailable):
                for lease in await s.claim(now=clock(s)):
                    return lease
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_start_whose_commit_got_no_answer_happens_once_and_is_told(proxied, moment):
    proxy, s = proxied
    await s.start("a")
    proxy.break_next(moment)
    run = await s.start("a")
    assert proxy.broken == 1
    assert (await s.run(run)).status == "suspended"
    assert await s.read("SELECT count(*) FROM runs") == [(2,)]


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_claim_whose_commit_got_no_answer_is_told_with_its_jobs(proxied, moment):
    proxy, s = proxied
    await s.start("a")
    proxy.break_next(moment)
    lease = await s.claim_one()
    assert (proxy.broken, lease.job.claim_attempt) == (1, 1)
    proxy.break_next(moment)
    assert await s.report(lease, result={"n": 1}) == "accepted"
    assert (await s.run(await s.store.run(s.project.id, lease.job.run_id))).result == {"one": {"n": 1}}


# --- new jobs: one statement, which is a transaction by itself, without an answer


MARKED = b"a text by which the proxy knows the statement"


def marked():
    return NewJob(action_name="print", spec={"parameters": {"text": MARKED.decode()}})


async def count(s, table="jobs"):
    ((number,),) = await s.read(f"SELECT count(*) FROM {table}")
    return number


@pytest.mark.parametrize("moment", ["before", "sent", "after", "kept"])
async def test_new_jobs_whose_statement_got_no_answer_are_stored_once_and_told(proxied, moment):
    proxy, s = proxied
    await s.enqueue([marked()])
    proxy.break_next(moment, at=MARKED)
    enqueued = await s.enqueue([marked(), marked()])
    assert proxy.broken == 1
    assert set(await s.read("SELECT id FROM jobs")) >= {(job_id,) for job_id in enqueued.ids}
    assert (len(enqueued.ids), await count(s), await count(s, "jobs_pending")) == (2, 3, 3)


@pytest.mark.parametrize("moment", ["before", "sent", "after", "kept"])
async def test_a_claim_that_came_with_new_jobs_without_an_answer_is_told_with_these(proxied, moment):
    proxy, s = proxied
    await asyncio.gather(s.enqueue([marked()]), s.claim(with_new=True))
    proxy.break_next(moment, at=MARKED)
    enqueued, (lease,) = await asyncio.gather(s.enqueue([marked()], now=1), s.claim(with_new=True, now=1))
    assert proxy.broken == 1
    assert ([lease.job.id], lease.job.claim_attempt) == (enqueued.ids, 1)
    assert (await count(s), await count(s, "jobs_claimed"), await count(s, "jobs_pending")) == (2, 2, 0)
    assert await s.report(lease, now=2) == "accepted"


async def test_a_statement_that_ends_its_connection_each_time_is_told_in_time(place, monkeypatch):
    monkeypatch.setattr(postgres_writer, "PATIENCE", 0.5)
    async with scenario(place) as s:
        await s.write(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); RETURN NEW; END $$"
        )
        await s.write(
            "CREATE TRIGGER die BEFORE INSERT ON jobs FOR EACH ROW"
            " WHEN (NEW.spec LIKE '%poison%') EXECUTE FUNCTION die()"
        )
        poison = NewJob(action_name="print", spec={"parameters": {"text": "poison"}})
        async with asyncio.timeout(60):
            told = await asyncio.gather(*(s.enqueue([poison]) for _ in range(4)), return_exceptions=True)
            assert {type(error) for error in told} == {StoreUnavailable}
            await s.store.ping()
            await s.enqueue([marked()])
        assert await count(s) == 1


async def test_keys_that_are_asked_for_ahead_cost_no_flush_of_their_own(place):
    """And nothing after them is done without one."""
    async with scenario(place) as s:
        connection = await s.store.database.connect()
        ahead = s.store._known.sql["new_keys_ahead"]

        async def flushes():
            return await connection.fetchval("SHOW synchronous_commit")

        async with connection.transaction():
            _, keys = await connection.fetchrow(ahead, 0, 3)
            assert (len(keys), await flushes()) == (3, "off")
        assert await flushes() == "on"
        await connection.fetchrow(ahead, 0, 3)
        assert await flushes() == "on"
        await connection.close()


async def test_what_a_server_is_still_at_is_not_told_as_undone_and_goes_back_at_no_cost(proxied, monkeypatch):
    monkeypatch.setattr(postgres_writer, "PATIENCE", 0.5)
    proxy, s = proxied
    await s.enqueue([marked()])
    # Somebody is about to take the key of the job after the next.
    blocker = await asyncpg.connect(s.place.cluster.url(s.place.database))
    await blocker.execute("BEGIN")
    others = "id || ' of another', project_id, lane_id, kind, origin, queue, max_attempts, retry_delay, non_retryable"
    others += ", execution_timeout, created_at, spec"
    columns = others.replace(" || ' of another'", "")
    await blocker.execute(f"INSERT INTO jobs (seq, {columns}) SELECT seq + 2, {others} FROM jobs")
    assert len(await s.claim()) == 1
    await asyncio.gather(s.enqueue([marked()]), s.claim(with_new=True))
    proxy.break_next("sent", at=MARKED)
    told = await asyncio.gather(
        s.enqueue([marked()], now=clock(s)), s.claim(with_new=True, now=clock(s)), return_exceptions=True
    )
    assert [type(each) for each in told] == [StoreUnavailable, StoreUnavailable]
    assert await count(s) == 2
    await blocker.execute("ROLLBACK")
    await blocker.close()
    lease = await given_back(s)
    assert (await count(s), lease.job.claim_attempt, lease.job.hand_backs) == (3, 1, 1)


# --- when the server itself falls


async def crash_of_the_server(cluster, connection):
    """As when the power goes."""
    del connection
    await asyncio.to_thread(cluster.stop, signal.SIGQUIT)
    await start(cluster)


async def crash_of_one_process(cluster, connection):
    """As when the kernel has no memory left: all others are ended too, and the same server recovers."""
    ended = asyncio.Event()
    connection.add_termination_listener(lambda _: ended.set())
    flusher = await connection.fetchval("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
    assert flusher in [process.pid for process in psutil.Process(cluster.process.pid).children()]
    os.kill(flusher, signal.SIGKILL)
    await ended.wait()
    await asyncio.to_thread(cluster.wait_until_ready)


@pytest.mark.parametrize("fall", [crash_of_the_server, crash_of_one_process])
async def test_a_server_that_has_fallen_is_known(durable, fall):
    async def life():
        connection = await asyncpg.connect(durable.url("postgres"))
        found = await connection.fetchval(f"SELECT {postgres_unanswered.LIFE}")
        return connection, found

    connection, before = await life()
    other, same = await life()
    assert same == before
    await other.close()
    await fall(durable, connection)
    connection.terminate()
    connection, after = await life()
    await connection.close()
    assert after != before


async def test_a_transaction_that_a_crash_has_undone_is_not_taken_for_the_one_that_got_its_number(durable, monkeypatch):
    """What was not flushed is forgotten with its number, which the server then gives to somebody else."""
    monkeypatch.setattr(postgres_writer, "PATIENCE", 30.0)  # a busy machine's server may need longer to come back
    place = PostgresPlace(durable)
    durable.sql("ALTER SYSTEM SET wal_writer_delay = '10s'")
    durable.sql("SELECT pg_reload_conf()")
    commit = postgres_writer.commit
    given_again = False

    async def crash(connection):
        nonlocal given_again
        monkeypatch.setattr(postgres_writer, "commit", commit)
        lost = int(await connection.fetchval("SELECT pg_current_xact_id()::text"))
        await crash_of_the_server(durable, connection)
        given = [int(durable.sql("SELECT pg_current_xact_id()"))]
        given_again = given[0] <= lost
        while given[-1] < lost:
            given.append(int(durable.sql("SELECT pg_current_xact_id()")))
        raise ConnectionResetError("the server has crashed")

    started = []
    async with scenario(place) as s:
        await s.publish("a", [action()])
        # Whoever happens to flush just before the crash saves the number too: then there is another crash.
        while not given_again:
            monkeypatch.setattr(postgres_writer, "commit", crash)
            try:
                run = await s.start("a")
            except StoreUnavailable as error:
                told = str(error)
                assert given_again
            else:
                assert not given_again
                started.append((run.id,))
        assert "while it committed" in told
        assert await s.read("SELECT id FROM runs ORDER BY seq") == started
        started.append(((await s.start("a")).id,))
        assert await s.read("SELECT id FROM runs ORDER BY seq") == started
    place.remove()


@pytest.mark.parametrize("outages", [1, 2])
async def test_jobs_that_were_leased_to_somebody_who_was_never_told_go_back_at_no_cost(proxied, monkeypatch, outages):
    monkeypatch.setattr(postgres_writer, "PATIENCE", 0.3)
    proxy, s = proxied

    await s.start("a", now=clock(s))
    proxy.break_next("after", then_refuse=True)
    with pytest.raises(StoreUnavailable, match="while it committed"):
        await s.claim(now=clock(s))
    if outages > 1:
        # The store goes again while the job is being given back.
        attempts = asyncio.Semaphore(0)
        submit = s.store._writer.submit

        async def counted(command, now=None):
            attempts.release()
            return await submit(command, now)

        monkeypatch.setattr(s.store._writer, "submit", counted)
        proxy.break_next("before", then_refuse=True)
        proxy.refuse = False
        async with asyncio.timeout(60):
            for _ in range(outages):
                await attempts.acquire()
    proxy.refuse = False
    lease = await given_back(s)
    assert (lease.job.claim_attempt, lease.job.attempts_charged, lease.job.hand_backs) == (1, 0, 1)


async def test_the_clock_goes_on_from_what_was_stored_when_the_databases_was_set_back(place):
    async with scenario(place) as s:
        ahead = s.store.now() + 3_600_000_000
        await s.write(f"UPDATE store_clock SET latest = {ahead}")
    async with scenario(place, prepared=False) as s:
        assert s.store.now() >= ahead


async def test_leases_wait_when_the_databases_clock_jumps_ahead(place):
    async with scenario(place) as s:
        s.store._follow_the_clock(s.store.now() + 1_000_000)
        assert s.store._leases_lapse_from == 0
        s.store._follow_the_clock(s.store.now() + 3_600_000_000)
        assert s.store._leases_lapse_from > s.store.now()


async def test_a_password_that_was_changed_is_read_again(cluster, tmp_path):
    place = PostgresPlace(cluster)
    role = f"role_{place.database}"
    cluster.sql(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'one'")
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_text("one\n")
    url = f"postgresql://{role}@127.0.0.1:{cluster.port}/{place.database}?sslmode=disable"
    store = PostgresStore(url, LeaseTerms(), password_file=file)
    await store.open(lambda facts: None)
    cluster.sql(f"ALTER ROLE {role} PASSWORD 'two'")
    file.write_text("two\n")
    cluster.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")
    await store.ping()
    await store.close()
    place.remove()
    cluster.sql(f"DROP ROLE {role}")
