"""What a process's end says, and whether it is the same as the last one. Decides only."""

import re

import msgspec

SAME_FAULT_LIMIT = 5
"""The same fault so many times in a row is called a crash loop."""

_MAX_SAYS = 400
_VARYING = re.compile(r"0x[0-9a-fA-F]+|[0-9a-f]{8,}|\d+")
_FATAL = "Fatal Python error"
_REASONS = ("reason", "error", "problem", "exception", "detail")


def says(output: list[str], last_words: str) -> str:
    """The one line that explains an end best: its last words, a fatal error, else the last line that it wrote."""
    if last_words:
        return last_words[:_MAX_SAYS]
    lines = [line.strip() for line in output if line.strip()]
    for line in lines:
        if line.startswith(_FATAL):
            return line[:_MAX_SAYS]
    return _readable(lines[-1])[:_MAX_SAYS] if lines else ""


def fingerprint(how: str, sentence: str) -> str:
    """Equal for two ends that only differ in numbers: times, addresses, process ids."""
    return f"{how}: {_VARYING.sub('#', sentence)}"


def _readable(line: str) -> str:
    """A line of a process's own log is JSON, of which the times would tell every two lines apart."""
    if not line.startswith("{"):
        return line
    try:
        entry = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return line
    if not isinstance(entry, dict) or not isinstance(entry.get("event"), str):
        return line
    reasons = [str(entry[key]) for key in _REASONS if entry.get(key)]
    return ": ".join([entry["event"], *reasons[:1]])
