"""Reads from and writes to Kafka: the consumer, the producers, transactions, and the handling of broker errors."""
