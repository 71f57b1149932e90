"""Networks, their training and evaluation, and the bundle that carries them to the services."""
