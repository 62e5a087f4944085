"""publish: the sole owner of `confluent_kafka.Producer`. Results, skips and dead letters go out here.

`plain` writes outcomes and says when the brokers have them; `transactional` does so in transactions that hold the
input offsets too. Both fit results (`results`) and dead letters (`letters`) to the limits of their topics
(`limits`), and know what a refusal means (`refusals`).
"""

from consumer.publisher.limits import TopicLimits, topic_limits
from consumer.publisher.plain import Publisher
from consumer.publisher.settings import producer_settings, transactional_settings
from consumer.publisher.transactional import TransactionalPublisher

__all__ = [
    "Publisher",
    "TopicLimits",
    "TransactionalPublisher",
    "producer_settings",
    "topic_limits",
    "transactional_settings",
]
