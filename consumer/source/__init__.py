"""poll: the sole owner of `confluent_kafka.Consumer`.

`client` is the consumer, `listener` what it tells the loop, `position` where it reads, `settings` what it is made with,
`commits` when it commits, `group` what its group says of it, `errors` what its errors mean.
"""

from consumer.source.client import BURST, Source
from consumer.source.listener import RebalanceListener
from consumer.source.settings import consumer_settings

__all__ = ["BURST", "RebalanceListener", "Source", "consumer_settings"]
