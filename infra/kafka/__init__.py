"""Apache Kafka: questions to any, clients of it, and one on this machine."""
