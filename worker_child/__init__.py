"""One worker process, the mold that it is forked from, and the API that handlers are written against.

```python
from worker_child import Context, NonRetryableError, action
```
"""

from worker_child.actions import Context, action
from worker_child.errors import JobCancelled, NonRetryableError, RetryableError, ValidationError

__all__ = ["Context", "JobCancelled", "NonRetryableError", "RetryableError", "ValidationError", "action"]
