"""Candidates to CTRs: the HTTP service, the ranking behind it and a client for it."""
