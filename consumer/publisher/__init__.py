"""publish: the sole owner of `confluent_kafka.Producer`. Results, skips and dead letters go out here.

`plain` writes outcomes and says when the brokers have them; `transactional` does so in transactions that hold the
input offsets too.
"""

from consumer.publisher.plain import Publisher, producer_settings
from consumer.publisher.transactional import TransactionalPublisher, transactional_settings

__all__ = ["Publisher", "TransactionalPublisher", "producer_settings", "transactional_settings"]
