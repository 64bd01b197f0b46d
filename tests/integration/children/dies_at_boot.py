"""Ends its process while it is imported; to be used with preload = false, so that the child imports it."""

import os
import sys

sys.stderr.write(f"process {os.getpid()}: the licence has run out\n")
sys.stderr.flush()
os._exit(3)
