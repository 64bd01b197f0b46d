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
