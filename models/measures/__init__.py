"""How good predictions are, and whether a method looks where it should."""
