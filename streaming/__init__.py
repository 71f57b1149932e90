"""Behavior events from Kafka and from files into sequences, and when to recluster whom."""
