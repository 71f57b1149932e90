"""Events of the platform, from raw values to what is stored; by topic or by file, one conversion.

`fields` finds the values of an event, `values` and `times` hold the rules for them, `rejects` the
reasons to refuse one. `conversion` applies them all, and `decoder` does for a topic's records.
"""
