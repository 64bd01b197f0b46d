"""What a program says to the service manager that runs it: its state, and its log. Imports nothing of ours."""
