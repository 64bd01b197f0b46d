"""Where stores are: every test that asks for a `place` runs on each kind of them."""

import pytest

from tests.support.store_scenario import PostgresPlace, SqlitePlace


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    if request.param == "sqlite":
        yield SqlitePlace(tmp_path / "store.db")
        return
    yield request.getfixturevalue("postgres_place")


@pytest.fixture
def postgres_place(cluster):
    """A database of its own."""
    made = PostgresPlace(cluster)
    yield made
    made.remove()
