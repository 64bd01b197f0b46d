"""Imports a pool's modules, and says in one sentence what is wrong with one that cannot be imported."""

import importlib
import traceback
from pathlib import Path
from types import TracebackType

from worker_child.errors import ConfigurationError, ModuleImportError


def import_module(name: str) -> None:
    """Imports `name`. Raises ModuleImportError that names the module and what is wrong with it.

    Whatever a module raises is caught, SystemExit too: a bad module must not end the process that imports it.
    """
    try:
        importlib.import_module(name)
    except ConfigurationError as error:
        raise ModuleImportError(f"modules: {name!r}: {error}", traceback.format_exc()) from error
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(missing + "."):
            sentence = f"modules: there is no module {name!r}: put its directory into `module_path`, or install it"
        else:
            place = _place(error.__traceback__)
            sentence = f"modules: {name!r} needs the module {missing!r}, which is not installed{place}"
        raise ModuleImportError(sentence, traceback.format_exc()) from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raised = f"{type(error).__name__}: {error}".rstrip(": ")
        sentence = f"modules: importing {name!r} raised {raised}{_place(error.__traceback__)}"
        raise ModuleImportError(sentence, traceback.format_exc()) from error


def _place(trace: TracebackType | None) -> str:
    """Where it was raised: the innermost frame that belongs to no import machinery."""
    frames = [frame for frame in traceback.extract_tb(trace) if "importlib" not in frame.filename]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if len(frames) > 1 else ""
