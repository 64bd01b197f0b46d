"""`make run`'s supervisor is killed with -9 in mid-job, twice; `make campaign` does so ten times."""

from pathlib import Path

import pytest

from tests.campaign.quickstart_killed import kill_again_and_again


@pytest.mark.timeout(300)
def test_no_orphan_and_no_finished_job_done_again(tmp_path: Path) -> None:
    kills, problems = kill_again_and_again(tmp_path, 2)
    assert problems == []
    # The supervisor, its control plane, its mold and two workers.
    assert [kill.processes for kill in kills] == [5, 5]
