"""The HTTP interface of the scorer: its routes, their formats, middleware, admission."""
