"""Parts that the tools share for work with Kafka."""
