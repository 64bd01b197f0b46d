"""The `mobius` command: an HTTP client of any Mobius, and a worker from flags."""
