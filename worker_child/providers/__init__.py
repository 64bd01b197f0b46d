"""Model servers, a module for each API: Ollama, and whatever speaks OpenAI's Chat Completions or Anthropic's Messages.

httpx is imported by the first of them that is made, so that workers without models do not pay for it.
"""

import importlib
from collections.abc import Callable
from typing import Any

from wire.pipe import ModelProvider
from worker_child.catalogue import Provider


def provider(settings: ModelProvider) -> Provider:
    """The provider of these settings. Raises CredentialError when its key cannot be read."""
    module = importlib.import_module(f"{__name__}.{settings.api}")
    make: Callable[[ModelProvider], Any] = module.provider
    made: Provider = make(settings)
    return made
