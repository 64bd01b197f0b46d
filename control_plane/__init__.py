"""The control plane: automations, runs and jobs, and the sockets of the workers that execute them."""
