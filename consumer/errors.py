"""Errors that end the process, each with its policy in the class.

A bad frame is not an error: it is a `types.Rejected` value that travels with its batch. An exception from here
means that the program cannot go on as configured. `exit_code` is what the process exits with; `retriable` says
whether a restarted pod can be expected to get further without a person changing something.

The message of each error is for a person: what happened, where, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class SluiceError(Exception):
    """Base of all errors raised on purpose. Never raised itself."""

    exit_code: ClassVar[int] = 1
    retriable: ClassVar[bool] = False


class ConfigError(SluiceError):
    """An option is unknown, out of bounds, or contradicts another one. Raised before anything is opened."""

    exit_code = 2


class ModelError(SluiceError):
    """The model file is missing, unsafe, of the wrong kind, or not the one whose SHA-256 was configured."""

    exit_code = 3


class KafkaError(SluiceError):
    """The brokers were away for too long, or a client died."""

    exit_code = 4
    retriable = True


class RefusedError(KafkaError):
    """The brokers refuse until a person mends it: a right, a password, a setting, offsets that expired, a shared ID."""

    retriable = False


class TopicReplacedError(KafkaError):
    """An input topic was created again, or its log was cut, while it was read. Nothing more of it is committed."""

    def __init__(self, message: str, topic: str) -> None:
        super().__init__(message)
        self.topic = topic


class OffsetsLostError(RefusedError):
    """The next offset is not in the log: a person chooses where to read on. Nothing more of its topic is committed."""

    def __init__(self, message: str, topic: str) -> None:
        super().__init__(message)
        self.topic = topic


class PublishError(KafkaError):
    """An outcome could not be written within `delivery.timeout.ms`. Nothing after it was committed."""

    exit_code = 5


class UnwritableError(PublishError):
    """The brokers refuse to write an outcome until a person mends it: a right, a size, a topic that is not there."""

    retriable = False


class TransactionError(KafkaError):
    """A transaction failed; `rolled_back`: for certain. Exactly-once delivery tries again for a while."""

    def __init__(self, message: str, *, rolled_back: bool, expelled: bool = False) -> None:
        super().__init__(message)
        self.rolled_back = rolled_back
        self.expelled = expelled  # by the group: the next one fails, too, unless a poll has let this process join again


class EngineError(SluiceError):
    """The detector failed in a way that no retry on this device can mend. Nothing of the batch was committed."""

    exit_code = 6
    retriable = True


class DrainError(SluiceError):
    """Work in flight did not end within the drain deadline. It was not committed and will be repeated."""

    exit_code = 7
    retriable = True


class RejectRateError(SluiceError):
    """So many frames in a row were rejected that a misconfiguration is likelier than bad frames."""

    exit_code = 8


class StalledError(SluiceError):
    """The main loop has not turned for too long; the process ends itself so that another pod takes over."""

    exit_code = 9
    retriable = True


class OwnershipError(SluiceError):
    """A client object was called from a thread that does not own it. This is a bug in Sluice: please report it."""

    exit_code = 70
