"""The parent: one event loop that starts, watches, restarts and drains children, and never runs a handler."""
