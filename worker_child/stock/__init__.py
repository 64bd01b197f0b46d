"""Actions that come with the worker: those of every one (`stock_actions`), and those of a workspace."""
