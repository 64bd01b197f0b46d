import pytest

from worker_child import log


@pytest.fixture(autouse=True)
def _logs_as_in_a_child() -> None:
    log.configure(level="info", log_format="json")
