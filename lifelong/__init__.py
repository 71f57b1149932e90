"""The entrance: the command line and the demo. Composition only."""
