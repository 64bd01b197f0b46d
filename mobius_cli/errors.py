"""Everything the `mobius` command can say went wrong, and the exit code that says it to a program.

    CommandError
    ├── UsageError           64  an option or argument that cannot be meant
    ├── InputError           65  a file or a value whose content is wrong
    ├── NotFoundError        66  no such run, automation, project or file
    ├── UnavailableError     69  the control plane cannot be reached, or does not answer like one
    ├── CannotCreateError    73  a port is in use, a directory locked, a handle taken
    ├── CredentialError      77  401, 403, or a key that cannot be one
    ├── SettingError         78  an environment variable or a configuration file
    ├── RunFailedError        1  the command worked; the run it waited for did not
    └── StillBusyError        1  the command worked; what it waited for has not come in time

The codes are those of sysexits.h, so that a script can tell "try later" from "call somebody".
"""

from typing import ClassVar

INTERRUPTED = 130
"""128 + SIGINT: what a shell expects of a command that Ctrl-C ended."""

OUTPUT_CLOSED = 141
"""128 + SIGPIPE: what a shell says of a command whose reader went away, such as `mobius runs list | head -1`."""

INTERNAL = 70


class CommandError(Exception):
    """One sentence for people, with the exit code of its class."""

    exit_code: ClassVar[int] = INTERNAL


class UsageError(CommandError):
    """The command line cannot be meant like this."""

    exit_code = 64


class InputError(CommandError):
    """What the user gave, or what the server says of it, is wrong."""

    exit_code = 65


class NotFoundError(CommandError):
    """What was asked for does not exist."""

    exit_code = 66


class UnavailableError(CommandError):
    """No usable answer. `retry_after` is the server's wish in seconds, where it had one."""

    exit_code = 69

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CannotCreateError(CommandError):
    """Something is in the way of what was to be made."""

    exit_code = 73


class CredentialError(CommandError):
    """The API key is missing a permission, or is no key."""

    exit_code = 77


class SettingError(CommandError):
    """An environment variable or a file that configures this command is wrong."""

    exit_code = 78


class RunFailedError(CommandError):
    """The run that the command waited for ended otherwise than completed."""

    exit_code = 1


class StillBusyError(CommandError):
    """What the command waited for has not come in time; it goes on."""

    exit_code = 1
