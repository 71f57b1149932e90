"""Files of behavior events: read, sent to Kafka, or written straight into the store."""
