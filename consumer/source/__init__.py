"""poll: the sole owner of `confluent_kafka.Consumer`. `client` is the consumer, `group` what its group says of it."""

from consumer.source.client import BURST, RebalanceListener, Source, consumer_settings

__all__ = ["BURST", "RebalanceListener", "Source", "consumer_settings"]
