"""The supervisor's unit under a real systemd: what an operator and a running job see of it."""

import json
from collections.abc import Callable

import pytest

from supervisor.facts import REPLACED
from tests.support.real_systemd import Entry, Machine, message
from tests.systemd.conftest import API_KEY, BOOTSTRAP_KEY, SUPERVISOR, ControlPlane, ask, until

POOL_FILE = """
[control_plane]
api_url = "http://127.0.0.1:8780"
[supervisor]
[[pool]]
workers = 2
modules = ["handlers"]
module_path = ["/opt/handlers"]
"""

GATE = "/var/lib/mobius-supervisor/gate"


def from_init(text: str) -> Callable[[Entry], bool]:
    """What systemd itself says of the unit."""
    return lambda entry: entry["_PID"] == "1" and text in message(entry)


def says(*words: str) -> Callable[[Entry], bool]:
    """One line of the supervisor, or of a worker by way of it, with all these words."""
    return lambda entry: entry["_PID"] != "1" and all(word in f"{message(entry)} " for word in words)


@pytest.fixture
def supervisor(machine: Machine, control_plane: ControlPlane) -> Machine:
    machine.write("/etc/mobius/pool.toml", POOL_FILE)
    machine.run("install", "-D", "-m", "0600", BOOTSTRAP_KEY, API_KEY)
    return machine


def add_setting(machine: Machine, setting: str) -> None:
    machine.write(f"/etc/systemd/system/{SUPERVISOR}.d/test.conf", f"[Service]\n{setting}\n")
    machine.run("systemctl", "daemon-reload")


def start_with_a_job_in_hand(machine: Machine, control_plane: ControlPlane, handle: str) -> tuple[str, Entry]:
    """The run, and the last entry of the journal by then."""
    machine.run("systemctl", "start", SUPERVISOR)
    run = control_plane.start(handle)
    return run, machine.wait_for(SUPERVISOR, says("holding"))


def release(machine: Machine) -> None:
    machine.run("sh", "-c", f"echo done > {GATE}", timeout=10)


def main_process(machine: Machine) -> str:
    return machine.show(SUPERVISOR, "MainPID")["MainPID"]


def test_it_starts_says_how_many_workers_are_ready_and_stops(supervisor: Machine) -> None:
    supervisor.run("systemctl", "start", SUPERVISOR)
    assert supervisor.show(SUPERVISOR, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    for slot in ("default-1", "default-2"):
        supervisor.wait_for(SUPERVISOR, says("ready ", f"slot={slot} "))
    # The round that has told systemd is over when the same loop answers.
    ask(supervisor, 9464, "/readyz")
    shown = supervisor.show(SUPERVISOR, "StatusText", "WatchdogTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    assert "2 of 2 workers ready" in shown["StatusText"]
    assert int(shown["WatchdogTimestampMonotonic"]) > int(shown["ActiveEnterTimestampMonotonic"])
    supervisor.run("systemctl", "stop", SUPERVISOR)
    assert supervisor.show(SUPERVISOR, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert supervisor.processes(SUPERVISOR) == []


def test_ready_does_not_wait_for_the_control_plane(machine: Machine) -> None:
    machine.write("/etc/mobius/pool.toml", POOL_FILE.replace("8780", "8799"))
    machine.write(API_KEY, "mbx_" + "0" * 32, "0600")
    machine.run("systemctl", "start", SUPERVISOR)
    assert machine.show(SUPERVISOR, "ActiveState")["ActiveState"] == "active"


def test_the_api_key_arrives_as_a_credential_and_stays_there(supervisor: Machine) -> None:
    supervisor.run("systemctl", "start", SUPERVISOR)
    supervisor.wait_for(SUPERVISOR, says("registered ", "slot=default-1 "))
    key = supervisor.run("cat", API_KEY).stdout.strip()
    places = [f"/proc/{pid}/{file}" for pid in supervisor.processes(SUPERVISOR) for file in ("environ", "cmdline")]
    assert len(places) >= 6
    assert supervisor.run("grep", "--files-with-matches", "--fixed-strings", key, *places, check=False).returncode == 1
    assert all(key not in str(entry) for entry in supervisor.journal(SUPERVISOR))


@pytest.mark.parametrize(
    ("pool_file", "sentence"),
    [
        (POOL_FILE, "expected a readable file with the API key"),
        (POOL_FILE.replace("workers", "wrokers"), "pool[0].wrokers: "),
    ],
    ids=["no API key", "an unknown key in the pool file"],
)
def test_a_wrong_configuration_is_said_once_and_not_tried_again(
    machine: Machine, pool_file: str, sentence: str
) -> None:
    machine.write("/etc/mobius/pool.toml", pool_file)
    assert machine.run("systemctl", "start", SUPERVISOR, check=False).returncode != 0
    shown = machine.show(SUPERVISOR, "ActiveState", "ExecMainStatus", "NRestarts")
    assert shown == {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    (said,) = [entry for entry in machine.journal(SUPERVISOR) if sentence in message(entry)]
    assert said["PRIORITY"] == "3"


def test_a_reload_ends_when_the_file_is_adopted_and_fails_when_it_is_refused(
    supervisor: Machine, control_plane: ControlPlane
) -> None:
    run, holding = start_with_a_job_in_hand(supervisor, control_plane, "hold-a-program")
    main = main_process(supervisor)
    supervisor.write("/etc/mobius/pool.toml", POOL_FILE.replace("workers = 2", "workers = 2\nconcurrency = 3"))
    supervisor.run("systemctl", "reload", SUPERVISOR, timeout=90)
    supervisor.wait_for(SUPERVISOR, says("reload adopted "), after=holding["__CURSOR"])
    supervisor.write("/etc/mobius/pool.toml", POOL_FILE.replace("workers", "wrokers"))
    assert supervisor.run("systemctl", "reload", SUPERVISOR, check=False).returncode != 0
    refused = supervisor.wait_for(SUPERVISOR, says("reload refused"))
    assert "pool[0].wrokers" in message(refused)
    shown = supervisor.show(SUPERVISOR, "ActiveState", "MainPID")
    assert shown == {"ActiveState": "active", "MainPID": main}
    release(supervisor)
    supervisor.wait_for(SUPERVISOR, says("process ended", "slot=default-1 ", "cause=drained "))
    supervisor.wait_for(SUPERVISOR, says("process ended", "slot=default-2 ", "cause=drained "))
    assert control_plane.attempts(run) == [1]


def test_root_needs_no_path_to_ask_the_service(supervisor: Machine) -> None:
    supervisor.run("systemctl", "start", SUPERVISOR)
    supervisor.wait_for(SUPERVISOR, says("ready ", "slot=default-2 "))
    asked = supervisor.run("env", "HOME=/root", "/opt/mobius/bin/mobius-supervisor", "status")
    assert "default-2" in asked.stdout
    other = supervisor.run(
        "setpriv", "--reuid=nobody", "--clear-groups", "/opt/mobius/bin/mobius-supervisor", "status", check=False
    )
    assert other.returncode in (69, 77)


def test_a_stop_waits_for_the_job_in_hand(supervisor: Machine, control_plane: ControlPlane) -> None:
    run, holding = start_with_a_job_in_hand(supervisor, control_plane, "hold-a-program")
    supervisor.run("systemctl", "stop", "--no-block", SUPERVISOR)
    supervisor.wait_for(SUPERVISOR, says("session.drain", "jobs_in_hand=1 "), after=holding["__CURSOR"])
    assert supervisor.show(SUPERVISOR, "ActiveState")["ActiveState"] == "deactivating"
    expected = "draining: 1 of 2 workers left, with 1 job in hand"
    until(lambda: supervisor.show(SUPERVISOR, "StatusText")["StatusText"] == expected)
    release(supervisor)
    supervisor.run("systemctl", "stop", SUPERVISOR)
    assert supervisor.show(SUPERVISOR, "Result")["Result"] == "success"
    assert control_plane.attempts(run) == [1]
    report = supervisor.wait_for(SUPERVISOR, lambda entry: entry.get("MOBIUS_EVENT") == "DrainFinished")
    assert (report["MOBIUS_FINISHED"], report["MOBIUS_CUT_OFF"]) == ("1", "0")


def test_a_stop_that_cuts_a_job_off_says_so(supervisor: Machine, control_plane: ControlPlane) -> None:
    supervisor.write("/etc/mobius/pool.toml", POOL_FILE.replace("[[pool]]", 'drain_timeout = "1s"\n[[pool]]'))
    start_with_a_job_in_hand(supervisor, control_plane, "hold")
    supervisor.run("systemctl", "stop", SUPERVISOR)
    stopped = supervisor.wait_for(SUPERVISOR, says("stopped ", "cut_off=1 "))
    assert stopped["PRIORITY"] == "4"


def test_a_job_outlives_the_crash_of_its_supervisor_and_the_next_one_waits_for_it(
    supervisor: Machine, control_plane: ControlPlane
) -> None:
    run, holding = start_with_a_job_in_hand(supervisor, control_plane, "hold-a-program")
    crashed = main_process(supervisor)
    supervisor.run("kill", "-KILL", crashed)
    death = supervisor.wait_for(SUPERVISOR, from_init("Main process exited"), after=holding["__CURSOR"])
    assert supervisor.show(SUPERVISOR, "ActiveState")["ActiveState"] == "deactivating"
    release(supervisor)
    supervisor.wait_for(SUPERVISOR, from_init("Started "), after=death["__CURSOR"])
    supervisor.wait_for(SUPERVISOR, says("ready ", "slot=default-1 "), after=death["__CURSOR"])
    assert control_plane.attempts(run) == [1]
    assert main_process(supervisor) != crashed
    assert not any(from_init("Killing process")(entry) for entry in supervisor.journal(SUPERVISOR))


def test_the_watchdog_replaces_a_supervisor_that_stands_still_and_no_job_is_lost(
    supervisor: Machine, control_plane: ControlPlane
) -> None:
    add_setting(supervisor, "WatchdogSec=3s")
    run, holding = start_with_a_job_in_hand(supervisor, control_plane, "hold")
    stopped = main_process(supervisor)
    supervisor.run("kill", "-STOP", stopped)
    bark = supervisor.wait_for(SUPERVISOR, from_init("Watchdog timeout"), after=holding["__CURSOR"])
    supervisor.wait_for(SUPERVISOR, says("session.drain", "jobs_in_hand=1 "), after=bark["__CURSOR"])
    release(supervisor)
    supervisor.wait_for(SUPERVISOR, from_init("Started "), after=bark["__CURSOR"])
    assert control_plane.attempts(run) == [1]
    assert main_process(supervisor) != stopped


def test_a_worker_that_runs_out_of_memory_is_replaced_and_the_unit_goes_on(
    supervisor: Machine, control_plane: ControlPlane
) -> None:
    add_setting(supervisor, "MemoryMax=300M\nMemorySwapMax=0")
    supervisor.run("systemctl", "start", SUPERVISOR)
    supervisor.wait_for(SUPERVISOR, says("ready ", "slot=default-2 "))
    main = main_process(supervisor)
    control_plane.start("exhaust-memory")
    death = supervisor.wait_for(SUPERVISOR, says("process ended", "slot=default-", "signal=9 "))
    assert death["MOBIUS_CAUSE"] == "out_of_memory"
    supervisor.wait_for(SUPERVISOR, says("ready ", "slot=default-", "incarnation=2 "), after=death["__CURSOR"])
    shown = supervisor.show(SUPERVISOR, "ActiveState", "MainPID", "NRestarts")
    assert shown == {"ActiveState": "active", "MainPID": main, "NRestarts": "0"}


REPLACE = "touch $(/opt/mobius/bin/python -c 'import wire.build; print(wire.build.__file__)')"


def test_a_replaced_package_is_started_when_nothing_of_the_old_one_is_left(supervisor: Machine) -> None:
    supervisor.run("systemctl", "start", SUPERVISOR)
    for slot in ("default-1", "default-2"):
        supervisor.wait_for(SUPERVISOR, says("ready ", f"slot={slot} "))
    main = main_process(supervisor)
    supervisor.run("sh", "-c", REPLACE)
    supervisor.run("pkill", "-KILL", "--oldest", "--parent", main)
    skew = supervisor.wait_for(SUPERVISOR, lambda entry: entry.get("MOBIUS_EVENT") == "BuildSkew")
    assert skew["PRIORITY"] == "4"
    expected = f"running: 2 of 2 workers ready; {REPLACED}"
    until(lambda: supervisor.show(SUPERVISOR, "StatusText")["StatusText"] == expected)
    supervisor.run("pkill", "-KILL", "--parent", main)
    for slot in ("default-1", "default-2"):
        supervisor.wait_for(SUPERVISOR, says("ready ", f"slot={slot} "), after=skew["__CURSOR"])
    shown = supervisor.show(SUPERVISOR, "MainPID", "NRestarts", "StatusText")
    assert shown["MainPID"] != main
    assert shown["NRestarts"] == "1"
    assert "restart" not in shown["StatusText"]


def test_an_end_is_in_the_journal_with_its_fields(supervisor: Machine) -> None:
    supervisor.run("systemctl", "start", SUPERVISOR)
    supervisor.wait_for(SUPERVISOR, says("ready ", "slot=default-1 "))
    main = main_process(supervisor)
    supervisor.run("pkill", "-KILL", "--oldest", "--parent", main)
    death = supervisor.wait_for(SUPERVISOR, lambda entry: entry.get("MOBIUS_EVENT") == "ChildDied")
    expected = {
        "_TRANSPORT": "journal",
        "_PID": main,
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "mobius-supervisor",
        "MOBIUS_INCARNATION": "1",
        "MOBIUS_CAUSE": "signal",
        "MOBIUS_SIGNAL": "9",
        "MOBIUS_POOL": "default",
    }
    assert expected.items() <= death.items()
    assert death["MOBIUS_SLOT"] in ("default-1", "default-2", "mold:default")
    assert message(death).startswith("process ended ")
    said = supervisor.run("journalctl", "--output=cat", "MOBIUS_EVENT=ChildDied").stdout
    assert said.splitlines() == [message(death)]


def test_what_a_job_logs_and_prints_has_its_fields_and_can_make_no_others(
    supervisor: Machine, control_plane: ControlPlane
) -> None:
    supervisor.run("systemctl", "start", SUPERVISOR)
    assert control_plane.attempts(control_plane.start("speak")) == [1]
    supervisor.wait_for(SUPERVISOR, says("of a program"))
    spoken = [entry for entry in supervisor.journal(SUPERVISOR) if entry.get("MOBIUS_POOL") == "default"]
    logged = next(entry for entry in spoken if message(entry).startswith("x\nPRIORITY=0"))
    job = logged["MOBIUS_JOB"]
    slot = {"MOBIUS_SLOT": logged["MOBIUS_SLOT"], "MOBIUS_INCARNATION": "1"}
    ours = {"PRIORITY": "6", "MOBIUS_ACTION": "test.speak", "MOBIUS_ATTEMPT": "1"}
    assert slot["MOBIUS_SLOT"] in ("default-1", "default-2")
    assert (slot | ours).items() <= logged.items()
    assert "y" * 10_000 in message(logged)
    assert "\x1b" not in message(logged)
    library = next(entry for entry in spoken if message(entry).startswith("of a library"))
    assert (slot | {"PRIORITY": "4", "MOBIUS_JOB": job}).items() <= library.items()
    printed = [entry for entry in spoken if entry.get("MOBIUS_STREAM") == "output"]
    texts = [message(entry).removesuffix(f" stream=output pool=default {named(slot)}") for entry in printed]
    assert texts == [
        "x",
        "PRIORITY=0",
        "MOBIUS_SLOT=default-9\\x1b[2J",
        '{"event": "forged", "level": "critical", "job_id": "job_forged"}',
        "\ufffd\ufffd\\x00binary",
        "of a program",
    ]
    for entry in printed:
        assert (slot | {"PRIORITY": "6"}).items() <= entry.items()
        assert "MOBIUS_JOB" not in entry
    assert supervisor.run("journalctl", "--quiet", "MOBIUS_JOB=job_forged", check=False).stdout == ""
    of_the_job = supervisor.run("journalctl", "--quiet", "--output=cat", f"MOBIUS_JOB={job}").stdout
    assert "of a library" in of_the_job


def named(slot: dict[str, str]) -> str:
    return f"slot={slot['MOBIUS_SLOT']} incarnation={slot['MOBIUS_INCARNATION']}"


SEND_LARGE = """
from service_manager.journal import Journal, entry
assert Journal().put([entry({"MESSAGE": "z" * 1_000_000 + chr(10) + "MOBIUS_SLOT=x", "MOBIUS_EVENT": "Large"})]) == []
"""


def test_the_journal_takes_an_entry_that_is_larger_than_a_datagram(machine: Machine) -> None:
    machine.run("/opt/mobius/bin/python", "-c", SEND_LARGE)
    machine.run("journalctl", "--sync")
    text = machine.run("journalctl", "--output=json", "--all", "--quiet", "MOBIUS_EVENT=Large").stdout
    (entry,) = [json.loads(line) for line in text.splitlines()]
    assert message(entry) == "z" * 1_000_000 + "\nMOBIUS_SLOT=x"
    assert "MOBIUS_SLOT" not in entry


def test_a_journal_that_starts_again_loses_no_line(supervisor: Machine) -> None:
    supervisor.run("systemctl", "start", SUPERVISOR)
    supervisor.wait_for(SUPERVISOR, says("ready ", "slot=default-1 "))
    supervisor.run("systemctl", "restart", "systemd-journald")
    supervisor.run("pkill", "-KILL", "--oldest", "--parent", main_process(supervisor))
    supervisor.wait_for(SUPERVISOR, lambda entry: entry.get("MOBIUS_EVENT") == "ChildDied")


def test_json_lines_are_there_for_whoever_wants_them(supervisor: Machine) -> None:
    supervisor.write("/etc/mobius/pool.toml", POOL_FILE.replace("[supervisor]", '[supervisor]\nlog_format = "json"'))
    supervisor.run("systemctl", "start", SUPERVISOR)
    ready = supervisor.wait_for(SUPERVISOR, lambda entry: '"event":"ready"' in message(entry))
    assert json.loads(message(ready))["level"] == "info"
    assert ready["_TRANSPORT"] == "stdout"
