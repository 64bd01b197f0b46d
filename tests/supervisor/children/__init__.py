"""Tiny programs that behave as real processes do, well or badly; each is named for what it does."""
