"""`sluice verify`: is every input record answered, once, in order, and no commit ahead of it?

Data flow: `command` reads the options, and `request` says what they mean (pure). `run` takes the steps, in the order on
which the verdict stands. `reading` gets records and offsets from the brokers, `outcomes` says whose outcome a record is
(pure), `checker` judges (pure), and `report` says it (pure).
"""

from consumer.tools.verify.command import verify

__all__ = ["verify"]
