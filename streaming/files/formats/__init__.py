"""The formats of files: each reads rows in batches, from any row on, in bounded memory.

A format knows nothing of events. It says which columns there are and gives each row's values as
they are; what they mean is the same for all formats (`streaming.events.conversion`).
"""
