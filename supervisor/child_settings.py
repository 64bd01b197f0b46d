"""The pool file -> what one mold and one child are told. Decides only."""

from typing import Literal, cast

from supervisor.config import Config, ModelServer, Pool, tls_files
from wire.pipe import ENTRY_POINT_SOURCE, ChildSettings, ModelProvider, MoldSettings, PreviousEnd

# Children write JSON, and the supervisor's log turns it into what its own reader wants.
_CHILD_LOG: Literal["json"] = "json"

Api = Literal["ollama", "openai", "anthropic"]


def mold_settings(config: Config, pool: Pool) -> MoldSettings:
    """What a pool's mold imports."""
    return MoldSettings(
        pool=pool.name,
        modules=[*pool.modules, *(ENTRY_POINT_SOURCE + name for name in pool.entry_points)],
        actions=pool.actions,
        module_path=pool.module_path,
        preload=pool.preload,
        stock_actions=pool.stock_actions,
        environment_actions=pool.environment_actions,
        workspace=pool.workspace,
        model_servers=bool(pool.providers),
        log_level=config.supervisor.log_level,
        log_format=_CHILD_LOG,
    )


def child_settings(
    config: Config, pool: Pool, slot: str, instance_prefix: str, previous_end: PreviousEnd | None
) -> ChildSettings:
    """What the child of one slot is told."""
    return ChildSettings(
        worker_instance_id=worker_instance_id(config, slot, instance_prefix),
        api_url=config.control_plane.api_url,
        project=config.control_plane.project,
        api_key_file=config.credential.key_file,
        api_key=config.credential.key.reveal() if config.credential.key is not None else None,
        tls=tls_files(config.control_plane),
        name=config.worker_name,
        environment_id=pool.environment_id or None,
        concurrency=pool.concurrency,
        queues=pool.queues,
        actions=pool.actions,
        models=pool.models,
        providers=[_provider(name, server) for name, server in pool.providers.items()],
        journal=pool.journal,
        journal_path="" if pool.journal == "off" else f"{config.supervisor.state_dir}/journals/{slot}.journal",
        drain_grace=float(config.supervisor.drain_timeout),
        hang_limit=float(pool.limits.kill_after),
        identity_conflict=float(pool.limits.identity_conflict),
        log_level=config.supervisor.log_level,
        log_format=_CHILD_LOG,
        previous_end=previous_end,
    )


def _provider(name: str, server: ModelServer) -> ModelProvider:
    return ModelProvider(
        name=name,
        api=cast("Api", server.api),  # the configuration has given it one
        base_url=server.base_url,
        api_key_file=server.api_key_file or None,
        silence=float(server.silence),
    )


def worker_instance_id(config: Config, slot: str, prefix: str) -> str:
    """`<id>-<k>`, with the pool's name between them where there are several, or the id alone for a sole worker."""
    number = slot.rpartition("-")[2]
    if len(config.pool) > 1:
        return f"{prefix}-{slot}"
    if config.plain_instance_id and config.pool[0].workers == 1 and number == "1":
        return prefix
    return f"{prefix}-{number}"
