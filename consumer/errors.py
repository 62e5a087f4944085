"""Defines the errors that end the process, with the exit code of each.

A bad frame is not an error: it is a `types.Rejected` value that travels with its batch. An exception from this module
means that the program cannot continue as configured. `docs/reference.md` lists the first line of each docstring.

The message of each error is for a person: what happened, where, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class SluiceError(Exception):
    """Base class of all errors that Sluice raises on purpose. Never raised itself.

    Attributes:
        exit_code: The exit code of the process.
        retriable: Whether a restarted process can succeed although nobody has changed anything.
    """

    exit_code: ClassVar[int] = 1
    retriable: ClassVar[bool] = False


class ConfigError(SluiceError):
    """An option is unknown, out of bounds, or contradicts another one. Raised before anything is opened."""

    exit_code = 2


class ModelError(SluiceError):
    """The model file is missing, unsafe, of the wrong kind, or not the one whose SHA-256 was configured."""

    exit_code = 3


class KafkaError(SluiceError):
    """The brokers were unreachable for too long, or a Kafka client failed."""

    exit_code = 4
    retriable = True


class RefusedError(KafkaError):
    """The brokers refuse until a person fixes a permission, a password, a setting, expired offsets or a shared ID."""

    retriable = False


class TopicReplacedError(KafkaError):
    """An input topic was re-created or truncated while Sluice read it. No further offset of it is committed."""

    def __init__(self, message: str, topic: str) -> None:
        super().__init__(message)
        self.topic = topic


class OffsetsLostError(RefusedError):
    """The next offset is no longer in the log. A person must choose where to resume; no further offset is committed."""

    def __init__(self, message: str, topic: str) -> None:
        super().__init__(message)
        self.topic = topic


class PublishError(KafkaError):
    """An outcome could not be written within `delivery.timeout.ms`. No offset after it was committed."""

    exit_code = 5


class UnwritableError(PublishError):
    """The brokers refuse an outcome. A person must fix a permission, a size limit or a missing topic first."""

    retriable = False


class TransactionError(KafkaError):
    """A transaction failed. Exactly-once delivery retries for a limited time.

    Args:
        message: The cause.
        rolled_back: Whether it is certain that the brokers rolled the transaction back.
        expelled: Whether the group has expelled this process. Then the next transaction fails too, unless a poll has
            let the process rejoin.
    """

    def __init__(self, message: str, *, rolled_back: bool, expelled: bool = False) -> None:
        super().__init__(message)
        self.rolled_back = rolled_back
        self.expelled = expelled


class EngineError(SluiceError):
    """The detector failed, and no retry on this device can help. No frame of the batch was committed."""

    exit_code = 6
    retriable = True


class DrainError(SluiceError):
    """Frames in flight were not finished within the drain deadline. They were not committed and will be repeated."""

    exit_code = 7
    retriable = True


class RejectRateError(SluiceError):
    """Too many frames in a row were rejected. A misconfiguration is more likely than that many bad frames."""

    exit_code = 8


class StalledError(SluiceError):
    """The main loop made no progress for too long. The process ends itself so that another pod takes over."""

    exit_code = 9
    retriable = True


class OwnershipError(SluiceError):
    """A Kafka client was called from a thread that does not own it. This is a bug in Sluice: please report it."""

    exit_code = 70
