"""Encodes and decodes messages as defined in `schemas/`.

- `frames` reads input records.
- `results` writes and reads detection messages.
- `dead_letters` writes and reads dead letters.
- `message` has the types that they share.

Pure: no I/O, no clock, no state that outlives a call.
"""

from consumer.messages.dead_letters import ORIGINAL_KEY, DeadLetter, encode_dead_letter, message_bytes, read_dead_letter
from consumer.messages.frames import encode_envelope, is_source_id, parse_frame
from consumer.messages.message import ORIGINAL_TIMESTAMP, Message, read_record, record_id
from consumer.messages.results import SCHEMA_VERSION, ResultEncoder, decode_result

__all__ = [
    "ORIGINAL_KEY",
    "ORIGINAL_TIMESTAMP",
    "SCHEMA_VERSION",
    "DeadLetter",
    "Message",
    "ResultEncoder",
    "decode_result",
    "encode_dead_letter",
    "encode_envelope",
    "is_source_id",
    "message_bytes",
    "parse_frame",
    "read_dead_letter",
    "read_record",
    "record_id",
]
