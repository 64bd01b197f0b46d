"""Which session is able to run which job."""

from typing import Protocol

from control_plane.domain.model import Selector


class Routed(Protocol):
    """What of a job decides where it may run; Job and JobClaimable both have it."""

    @property
    def queue(self) -> str:
        """The queue that it waits in."""

    @property
    def action_name(self) -> str | None:
        """None: it is a generation."""

    @property
    def provider(self) -> str | None:
        """Of a generation."""

    @property
    def model(self) -> str | None:
        """Of a generation."""

    @property
    def environment_id(self) -> str | None:
        """The environment that it is pinned to."""


Kind = tuple[str | None, ...]


def kind_of(job: Routed) -> Kind:
    """What jobs have in common that the same sessions may be offered."""
    return (job.queue, job.action_name, job.provider, job.model, job.environment_id)


def admits(selector: Selector, job: Routed) -> bool:
    """Whether a session with this selector may be offered the job (contract, "Obligations of a server")."""
    if selector.queues and job.queue not in selector.queues:
        return False
    if job.environment_id != selector.environment_id:
        return False
    if job.action_name is None:
        return (job.provider, job.model) in selector.models
    if selector.action_names:
        return job.action_name in selector.action_names
    return not selector.models
