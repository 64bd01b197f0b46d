"""structlog without rich. To be imported before anything else imports structlog.

structlog imports rich, and rich imports whatever it could show, to colour the tracebacks of a console. No process of
ours that logs has one: it was a fifth of the time that each of them took to begin, and 5 MB of what it held.
"""

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules

if "structlog" not in _modules and "rich" not in _modules:
    _modules["rich"] = None
    try:
        import structlog  # noqa: F401 - it is there from now on
    finally:
        del _modules["rich"]
