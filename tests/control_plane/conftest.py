"""Where stores are: every test that asks for a `place` runs on each kind of them."""

import pytest

from tests.support.postgres_cluster import needed_here, shared_cluster, why_not
from tests.support.store_scenario import PostgresPlace, SqlitePlace


@pytest.fixture
def cluster():
    """The PostgreSQL server of this test process."""
    reason = why_not()
    if reason is not None:
        assert not needed_here(), f"these tests must not be skipped here: {reason}"
        pytest.skip(reason)
    return shared_cluster()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    if request.param == "sqlite":
        yield SqlitePlace(tmp_path / "store.db")
        return
    made = PostgresPlace(request.getfixturevalue("cluster"))
    yield made
    made.remove()
