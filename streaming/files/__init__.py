"""Files of events, to Kafka (`replay`) or to the store (`streaming.history`).

`reader` opens a file, `formats` read its rows, and `columns` makes events of them by the rules of
`streaming.events`.
"""
