"""``lifelong loadtest``: events and rankings at given rates against a system that is deployed.

It needs what clients have: Kafka, URLs of scorers, and items. All is bounded: rates, time, requests
under way. Events are of made-up users alone, so that nobody's history becomes another.
"""
