"""wire: bytes <-> types, following `schemas/`. Pure: no I/O, no clock, no state that outlives a call.

`frames` reads input records, `results` writes and reads detection messages, `deadletters` writes and reads dead
letters, `message` is what they share.
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
