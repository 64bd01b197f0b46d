"""Every error of the worker, in one tree.

```
WorkerError
├── HandlerError                what a handler may raise to say more than "it failed"
│   ├── NonRetryableError       another attempt would fail too
│   │   ├── ValidationError     parameters or result do not fit the handler's types
│   │   ├── UnknownAction       this worker has no handler of that name
│   │   ├── ResultTooLarge      the result does not fit into one frame
│   │   └── RequestRefused      a model server says that it will not answer this request
│   ├── RetryableError          another attempt may succeed
│   │   └── ModelServerError    a model server cannot be reached, failed, or broke off
│   └── JobCancelled            the handler stops because it was told to
├── ConfigurationError          the settings or the handlers cannot work: exit code 78
│   ├── ActionDefinitionError   an `@action` or `@generator` that cannot be registered
│   └── ModuleImportError       a module of `modules` cannot be imported
├── CredentialError             the API key cannot be read or was refused for good: exit code 77
└── JournalError                the journal cannot be used
    └── JournalLocked           another process still holds it
```

The names of the handlers' errors are the contract's ("Words on the wire"): they go into `error_type`.
"""

MAX_SENTENCE = 8 * 1024
"""Bytes of what is said of a fault to the supervisor: modules and their errors are as long as they like."""


class WorkerError(Exception):
    """Base of everything that this program raises on purpose."""


class HandlerError(WorkerError):
    """Base of what a handler may raise to give a verdict with its failure."""


class NonRetryableError(HandlerError):
    """Another attempt would fail too: the step fails at once. Subclasses are reported under this name."""


class ValidationError(NonRetryableError):
    """The job's parameters, or the handler's result, do not fit the declared type; the message names the field."""


class UnknownAction(NonRetryableError):  # noqa: N818 - the contract's word for it
    """This worker has no handler of that name."""


class ResultTooLarge(NonRetryableError):  # noqa: N818 - the contract's word for it
    """The handler's result does not fit into one frame (contract, "Frames")."""


class RetryableError(HandlerError):
    """Another attempt may succeed: what any other exception means too, said on purpose."""


class RequestRefused(NonRetryableError):  # noqa: N818 - an answer rather than a fault
    """A model server says that it will not answer this request, however often it is asked."""


class ModelServerError(RetryableError):
    """A model server cannot be reached, answered with an error, broke off, or said what its API does not have."""


class JobCancelled(HandlerError):  # noqa: N818 - what happened to the job, which is no error
    """The handler stops because it was told to (`ctx.raise_if_cancelled`)."""


class ConfigurationError(WorkerError):
    """The settings or the handlers cannot work; the message names the key and what to do."""


class ActionDefinitionError(ConfigurationError):
    """An `@action` or `@generator` that cannot be registered: a name taken twice, a signature that cannot be called."""


class ModuleImportError(ConfigurationError):
    """A module of `modules` cannot be imported. `detail` is the traceback of what it raised."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(sayable(message))
        self.detail = detail


class CredentialError(WorkerError):
    """The API key cannot be read, or was refused for good."""


class JournalError(WorkerError):
    """The journal cannot be used."""


class JournalLocked(JournalError):  # noqa: N818 - a state of the journal rather than a fault in it
    """Another process still holds the journal after the deadline."""


def text_of(error: BaseException) -> str:
    """What an exception says of itself; empty when that fails, whatever it fails with."""
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 - a `__str__` may raise whatever it likes
        return ""


def sayable(text: str, limit: int = MAX_SENTENCE) -> str:
    """The text for a message of the pipe: in UTF-8 of at most `limit` bytes, what has no UTF-8 as `\\udce9`."""
    data = text.encode("utf-8", "backslashreplace")
    return data.decode() if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "…"
