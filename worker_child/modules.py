"""Imports what a pool's handlers are in, and says in one sentence what is wrong with what cannot be imported.

A source is a module's name, the path of a Python file (`.py`), or an entry point of installed packages.
"""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import TracebackType

from wire.pipe import ENTRY_POINT_GROUP, ENTRY_POINT_SOURCE
from worker_child.errors import ConfigurationError, ModuleImportError, text_of

EVERY = "*"
"""In place of an entry point's name: all of the group."""


def expanded(sources: list[str]) -> list[str]:
    """The same with every installed entry point, by name, where all are asked for. Raises ModuleImportError."""
    every = f"{ENTRY_POINT_SOURCE}{EVERY}"
    if every not in sources:
        return sources
    names = sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})
    if not names:
        raise ModuleImportError(f"entry_points: no installed package has one in the group {ENTRY_POINT_GROUP}")
    return [*(source for source in sources if source != every), *(ENTRY_POINT_SOURCE + name for name in names)]


def import_source(source: str) -> None:
    """Imports one. Raises ModuleImportError that names it and what is wrong with it.

    Whatever it raises is caught, SystemExit too: a bad module must not end the process that imports it.
    """
    if source.startswith(ENTRY_POINT_SOURCE):
        name = source.removeprefix(ENTRY_POINT_SOURCE)
        _told("entry_points", name, _entry_point(name).load)
    elif source.endswith(".py"):
        path = Path(source)
        _told("modules", str(path), lambda: _import_file(path))
    else:
        _told("modules", source, lambda: importlib.import_module(source))


def _told(key: str, name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except ConfigurationError as error:
        raise ModuleImportError(f"{key}: {name!r}: {error}", traceback.format_exc()) from error
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(missing + "."):
            sentence = f"{key}: there is no module {name!r}: put its directory into `module_path`, or install it"
        else:
            place = _place(error.__traceback__)
            sentence = f"{key}: {name!r} needs the module {missing!r}, which is not installed{place}"
        raise ModuleImportError(sentence, traceback.format_exc()) from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raised = f"{type(error).__name__}: {text_of(error)}".rstrip(": ")
        sentence = f"{key}: importing {name!r} raised {raised}{_place(error.__traceback__)}"
        raise ModuleImportError(sentence, traceback.format_exc()) from error


def _entry_point(name: str) -> EntryPoint:
    found = list(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if not found:
        known = ", ".join(sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})) or "none"
        raise ModuleImportError(
            f"entry_points: no installed package has {name!r} in the group {ENTRY_POINT_GROUP} (installed: {known})"
        )
    if len({point.value for point in found}) > 1:
        places = " and ".join(f"{point.dist.name if point.dist else '?'} ({point.value})" for point in found)
        raise ModuleImportError(f"entry_points: {name!r} is claimed by {places}: uninstall one, or name the module")
    return found[0]


def _import_file(path: Path) -> None:
    """As the module that its name says, so that what lies beside it can be imported, and can import it."""
    path = path.resolve()
    known = sys.modules.get(path.stem)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == path:
        return
    # Another module has the name already: a standard one perhaps, or a file of another directory.
    name = path.stem if known is None else f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _place(trace: TracebackType | None) -> str:
    """Where it was raised: the innermost frame that belongs to no import machinery."""
    frames = [
        frame
        for frame in traceback.extract_tb(trace)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
