"""What everything stands on: settings, logs, metrics, errors, records, stores, the local Kafka."""
