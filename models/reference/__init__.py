"""Serving stated a second time, plainly, so that the service can be held against it."""
