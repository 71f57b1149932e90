"""Histories beside the live stream: a job's events, sorted by user and time, merged before what the
stream has of each user.

`inputs` and `topic` read, `spill` parts the events by user in bounded memory, `buckets` makes
histories of them, `job` does all of it, once and resumably. What a history claims and what stays
the stream's is said in docs/history.md.
"""
