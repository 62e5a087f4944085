"""Kafka input and output: the consumer, the producers, transactions, and what the brokers' errors mean."""
