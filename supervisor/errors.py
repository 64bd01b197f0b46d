"""Every error that ends the supervisor, with the exit code that it ends with (sysexits).

SupervisorError
 ├─ ConfigurationError      78  the pool file, a flag's value or the credential cannot be used as it is
 │   └─ HandlerImportError  78  a pool's modules cannot be imported
 ├─ UsageError              64  flags that do not go together
 ├─ StateDirectoryError     73  the state directory cannot be made, or another supervisor holds it
 ├─ CannotListenError       73  an address is taken or not ours
 ├─ ControlPlaneStartError   *  the embedded control plane said by its exit code that it cannot start: the same code
 ├─ NoSupervisorError       69  a command found no supervisor that takes it
 ├─ ControlDeniedError      77  a command may not use the supervisor's socket
 ├─ PackageReplacedError    75  the package was replaced, and nothing of it can be started beside this supervisor
 └─ RefusedError            77  the control plane ended every worker for good, and nobody is there to mend it
"""


class SupervisorError(Exception):
    """Base. `str()` is one sentence for people, without secrets."""

    exit_code: int = 70


class ConfigurationError(SupervisorError):
    """One or more problems, each a sentence that names the key, what was expected, and what to do."""

    exit_code = 78

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class HandlerImportError(ConfigurationError):
    """A mold said that the modules of its pool cannot be imported."""


class UsageError(SupervisorError):
    """Flags that contradict each other or the pool file."""

    exit_code = 64


class StateDirectoryError(SupervisorError):
    """The state directory cannot be made or written, or another supervisor uses it."""

    exit_code = 73


class CannotListenError(SupervisorError):
    """The address of `[supervisor] listen` cannot be bound."""

    exit_code = 73


class RefusedError(SupervisorError):
    """Every child was refused by the control plane, and the supervisor was told to end then."""

    exit_code = 77


class PackageReplacedError(SupervisorError):
    """Every worker is gone, and the next ones would run another build than this supervisor."""

    exit_code = 75


class NoSupervisorError(SupervisorError):
    """Nobody listens on the control socket, or whoever did ended before the answer."""

    exit_code = 69


class ControlDeniedError(SupervisorError):
    """The control socket belongs to another user."""

    exit_code = 77


class ControlPlaneStartError(SupervisorError):
    """The embedded control plane ended before it ever listened, with an exit code that a second try would repeat."""

    def __init__(self, problem: str, exit_code: int) -> None:
        super().__init__(problem)
        self.exit_code = exit_code
