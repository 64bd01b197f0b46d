"""SQL from named text: `sql/<dialect>/*.sql` holds blocks that begin with `-- name: <name>`.

`{other}` in a block stands for the text of another block. Migrations are whole files, in the order of their numbers.
"""

import re
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)
_INSERT = re.compile(r"\{(\w+)\}")
_MIGRATION = re.compile(r"([0-9]{4})_\w+\.sql")


def load_statements(dialect: str) -> dict[str, str]:
    """Every statement of a dialect by its name."""
    statements: dict[str, str] = {}
    folder = files("control_plane.store").joinpath("sql", dialect)
    for path in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if path.name.endswith(".sql"):
            _read(path.read_text(), statements)
    return {name: _complete(body, statements) for name, body in statements.items()}


def load_migrations(dialect: str) -> list[tuple[int, str]]:
    """Number and text of every migration, ascending from 1 without gaps."""
    folder = files("control_plane.store").joinpath("migrations", dialect)
    found = [(match, path) for path in folder.iterdir() if (match := _MIGRATION.fullmatch(path.name))]
    return sorted((int(match.group(1)), path.read_text()) for match, path in found)


def _read(text: str, statements: dict[str, str]) -> None:
    parts = _NAME.split(text)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name in statements:
            raise ValueError(f"two statements are named {name}")
        statements[name] = _COMMENT.sub("", body).strip()


def _complete(body: str, statements: dict[str, str]) -> str:
    return _INSERT.sub(lambda match: _complete(statements[match.group(1)], statements), body)
