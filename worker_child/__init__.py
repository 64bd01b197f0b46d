"""One worker process, the mold that it is forked from, and the API that handlers are written against.

```python
from worker_child import Context, NonRetryableError, action
from worker_child import Message, Usage, generator
```
"""

from worker_child.actions import Context, action
from worker_child.errors import JobCancelled, NonRetryableError, RetryableError, ValidationError
from worker_child.generators import Message, Usage, generator

__all__ = [
    "Context",
    "JobCancelled",
    "Message",
    "NonRetryableError",
    "RetryableError",
    "Usage",
    "ValidationError",
    "action",
    "generator",
]
