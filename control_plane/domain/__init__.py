"""What the control plane decides: jobs, leases, retries, runs, steps, sessions. No I/O, no clock, no randomness."""
