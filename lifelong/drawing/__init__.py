"""How figures look: one style, and names that lie on nothing."""
