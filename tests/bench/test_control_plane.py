"""The measurement of the control plane: every system does all jobs of its load, and what is missing is named."""

import json
import subprocess
import sys

import pytest

from bench import control_plane

RUNNABLE = [contestant for contestant in control_plane.CONTESTANTS if contestant.missing() is None]


@pytest.mark.parametrize("contestant", RUNNABLE, ids=lambda contestant: contestant.name)
def test_every_system_does_all_jobs_of_its_load(contestant: control_plane.Contestant) -> None:
    figures = control_plane.measure(contestant, round(200 / contestant.share), 3)
    assert figures["jobs/s"] > 0
    assert figures["enqueued/s"] >= figures["jobs/s"]
    assert 0 < figures["start p50 ms"] <= figures["start p99 ms"]
    if contestant.name.startswith("ours"):
        assert 0 < figures["schedule to start p50 ms"] < figures["start p50 ms"]
    costs = [figures[name] for name in figures if name.startswith("CPU us/job, ") and not name.endswith("together")]
    assert figures["CPU us/job, together"] == pytest.approx(sum(costs))


def test_what_is_missing_is_left_out_with_the_way_to_have_it(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(control_plane, "PYTHON", tmp_path / "python")
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "pgqueuer,celery", "--output", "json"])
    control_plane.main()
    left_out = json.loads(capsys.readouterr().out)["left_out"]
    assert set(left_out) == {"pgqueuer", "celery"}
    assert all("make bench-peers" in why for why in left_out.values())


def test_figures_are_medians_of_the_rounds_and_in_one_document() -> None:
    command = [sys.executable, "-m", "bench.control_plane", "--rounds=1", "--jobs=100", "--starts=2"]
    ended = subprocess.run(
        [*command, "--only=ours-sqlite", "--output=json"],
        cwd=control_plane.ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["medians"]["ours-sqlite"] == document["rounds"]["ours-sqlite"][0]
    assert "synchronous=FULL" in document["durability"]["ours-sqlite"]
    assert "cores" in document["machine"]
