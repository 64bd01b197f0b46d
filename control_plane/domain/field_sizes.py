"""How large the JSON fields of what people describe may be: they are listed a hundred at a time."""

from typing import Any

import msgspec

from control_plane.errors import Invalid

MAX_FIELD_BYTES = 128 * 1024


def check_sizes(fields: dict[str, Any]) -> None:
    """Of objects and arrays, as JSON. Raises Invalid("invalid_field")."""
    for name, value in fields.items():
        if isinstance(value, dict | list) and (size := len(msgspec.json.encode(value))) > MAX_FIELD_BYTES:
            raise Invalid("invalid_field", f"{name}: expected at most {MAX_FIELD_BYTES} bytes of JSON, got {size}")
