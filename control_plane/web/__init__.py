"""The HTTP side: requests, the event stream, and the worker socket."""
