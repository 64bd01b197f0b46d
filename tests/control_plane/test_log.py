import os
import pty
import subprocess
import sys

import msgspec

PROGRAM = """
import logging, structlog
from control_plane import log
log.configure("warning")
logger = structlog.get_logger("ours")
logger.info("not shown")
logger.warning("shown", answer=42)
logging.getLogger("theirs").info("not shown")
logging.getLogger("theirs").error("shown too: %s", "argument")
logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
try:
    raise KeyError("cause")
except KeyError:
    logger.exception("failed")
"""


def test_lines_of_ours_and_of_libraries_are_json_on_standard_error() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=30)
    assert result.stdout == ""
    lines = [msgspec.json.decode(line) for line in result.stderr.splitlines()]
    assert [(line["level"], line["event"]) for line in lines] == [
        ("warning", "shown"),
        ("error", "shown too: argument"),
        ("error", "failed"),
    ]
    assert lines[0]["answer"] == 42
    assert all(line["timestamp"].endswith("Z") for line in lines)
    assert "KeyError: 'cause'" in lines[2]["exception"]


STEERING = """
import structlog
from control_plane import log
log.configure("info")
steering = chr(27) + "[2J" + chr(0x9B) + "31m" + chr(13)
structlog.get_logger().info("worker registered", worker_instance_id=steering)
try:
    raise KeyError
except KeyError as error:
    error.add_note("a note " + steering)
    structlog.get_logger().exception("failed")
"""


def test_nothing_that_is_logged_steers_a_terminal() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "wb") as terminal, os.fdopen(ours, "rb", buffering=0) as reader:
        subprocess.run([sys.executable, "-c", STEERING], check=True, stderr=terminal, timeout=30)
        shown = reader.read(65536).decode()
    assert shown.count("\\x1b[2J\\x9b31m\\r") == 2, shown
    assert "\x1b[2J" not in shown
    assert "\x9b" not in shown
    assert "Traceback (most recent call last):\r\n" in shown
