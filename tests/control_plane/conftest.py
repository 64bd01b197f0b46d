"""Where stores are: every test that asks for a `place` runs on each kind of them."""

import pytest

from tests.support.store_scenario import PostgresPlace, SqlitePlace


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    if request.param == "sqlite":
        yield SqlitePlace(tmp_path / "store.db")
        return
    made = PostgresPlace(request.getfixturevalue("cluster"))
    yield made
    made.remove()
