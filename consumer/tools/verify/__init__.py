"""`sluice verify`: checks that every input record has its outcome, once and in order, and that no commit preceded it.

Data flow: `command` reads the options, and `request` parses their values (pure). `run` performs the steps; its result
depends on their order. `brokers` and `consumer.tools.kafka.reader` get offsets and records. `outcome_parser` finds the
input record of an outcome (pure). `checker` finds violations (pure). `report` renders the result (pure).
"""

from consumer.tools.verify.command import verify

__all__ = ["verify"]
