"""What every package of tests may ask for."""

import pytest

from tests.support.postgres_cluster import Cluster, needed_here, shared_cluster, why_not


@pytest.fixture
def cluster() -> Cluster:
    """The PostgreSQL server of this test process."""
    reason = why_not()
    if reason is not None:
        assert not needed_here(), f"these tests must not be skipped here: {reason}"
        pytest.skip(reason)
    return shared_cluster()
