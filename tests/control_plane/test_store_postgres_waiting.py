"""Jobs that were handed in here: a claim does not read what is remembered of them."""

import pytest
from msgspec.structs import replace

from control_plane.domain.enqueue import NewJob
from control_plane.store import postgres_waiting, postgres_writer
from control_plane.store.postgres_facts import Facts
from tests.support.store_scenario import at, scenario
from wire.verdicts import OVER_CAPACITY


@pytest.fixture
async def s(postgres_place):
    async with scenario(postgres_place) as made:
        yield made


@pytest.fixture
def read(monkeypatch):
    """Keys of the jobs that were read for a claim."""
    keys = []
    load = Facts.load_candidates

    async def counted(self, connection, seqs):
        keys.extend(seqs)
        return await load(self, connection, seqs)

    monkeypatch.setattr(Facts, "load_candidates", counted)
    return keys


def jobs(number):
    """Of two kinds."""
    names = [{"external_id": f"e{n}"} if n % 3 == 0 else {"max_attempts": 2} for n in range(number)]
    return [NewJob(action_name="print", spec={"parameters": {"n": n}}, **name) for n, name in enumerate(names)]


async def check(s, leases):
    for lease in leases:
        assert replace(await s.job(lease), spec={}) == lease.job


async def test_they_are_claimed_as_they_are_stored_without_being_read(s, read):
    enqueued = await s.enqueue(jobs(20))
    leases = await s.claim(limit=20)
    assert read == []
    assert [lease.job.id for lease in leases] == enqueued.ids
    assert [lease.spec for lease in leases] == [f'{{"parameters":{{"n":{n}}}}}' for n in range(20)]
    await check(s, leases)
    assert s.store._known.waiting._jobs == {}


async def test_one_that_was_claimed_before_is_read(s, read):
    await s.enqueue(jobs(2))
    first, second = await s.claim(limit=2)
    assert await s.report(first, "failed", error=OVER_CAPACITY, now=1) == "handed_back"
    assert await s.report(second, now=1) == "accepted"
    again = await s.claim(limit=2, now=2)
    assert [lease.job.id for lease in again] == [first.job.id]
    assert (again[0].job.hand_backs, again[0].job.claim_attempt, len(read)) == (1, 1, 1)
    await check(s, again)


async def test_another_replica_reads_them_and_what_is_remembered_here_harms_nobody(s, read):
    await s.enqueue(jobs(3))
    async with scenario(s.place, prepared=False) as other:
        other.project, other.session = s.project, s.session
        taken = await other.claim(limit=2)
        assert len(read) == 2
        await check(other, taken)
    (left,) = await s.claim(limit=3, now=1)
    assert left.job.id not in {lease.job.id for lease in taken}
    assert len(read) == 2
    await check(s, [left])


async def test_a_renewed_one_is_claimed_as_it_is_stored(s, read):
    await s.enqueue(jobs(1))
    await s.reap(601)
    leases = await s.claim(limit=1, now=602)
    assert read == []
    assert leases[0].job.claimed_at == at(602)
    await check(s, leases)


async def test_only_so_many_are_remembered_and_none_with_a_long_spec(s, read, monkeypatch):
    monkeypatch.setattr(postgres_waiting, "MOST_REMEMBERED", 3)
    await s.enqueue(jobs(5))
    await s.enqueue([NewJob(action_name="print", spec={"parameters": {"text": "x" * 1000}})])
    leases = await s.claim(limit=6)
    assert len(read) == 3
    await check(s, leases)


async def test_what_a_claim_leaves_is_still_remembered(s, read):
    await s.enqueue(jobs(10))
    assert len(await s.claim(limit=10, byte_limit=2500)) == 2
    assert len(await s.claim(limit=10)) == 8
    assert read == []


async def test_what_was_not_committed_is_not_remembered(s, read, monkeypatch):
    """A crashed server gives the keys of what it has forgotten to others."""
    commit = postgres_writer.commit

    async def cut(connection):
        monkeypatch.setattr(postgres_writer, "commit", commit)
        connection.terminate()
        await commit(connection)

    monkeypatch.setattr(postgres_writer, "commit", cut)
    remembered = []
    add = s.store._known.waiting.add
    monkeypatch.setattr(s.store._known.waiting, "add", lambda alike, seqs: (remembered.append(seqs), add(alike, seqs)))
    enqueued = await s.enqueue(jobs(1))  # a second time, by another connection
    assert len(remembered) == 1
    leases = await s.claim(limit=2)
    assert ([lease.job.id for lease in leases], read) == (enqueued.ids, [])
    await check(s, leases)


async def test_nothing_is_remembered_where_the_server_is_another(s, read):
    """It may not have all that was committed at the one before, and give its keys to others."""
    await s.enqueue(jobs(2))
    (first,) = await s.claim(limit=1)
    assert read == []
    writer = s.store._writer
    assert writer._life
    writer._life = "of the one before"
    connection = await writer._database.connect()
    await writer._note_server(connection)
    await connection.close()
    assert (s.store._known.waiting._jobs, s.store._known.lanes.of_project(s.project.id)) == ({}, [])
    (second,) = await s.claim(limit=1)
    assert len(read) == 1
    await check(s, [first, second])
