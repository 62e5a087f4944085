"""Decoding in processes that can be killed, for input that may be hostile: `decode.isolation: process`."""

from __future__ import annotations

from collections.abc import Callable

from consumer.config import DecodeConfig
from consumer.decoder import Decoder
from consumer.isolation.pool import IsolatedDecoder
from consumer.types import LetterboxPolicy

__all__ = ["IsolatedDecoder", "make_decoder"]


def make_decoder(
    config: DecodeConfig, policy: LetterboxPolicy, on_replaced: Callable[[], None]
) -> Decoder | IsolatedDecoder:
    """What `decode.isolation` asks for. `on_replaced` is called on a decoding thread, for each process that was."""
    if config.isolation == "none":
        return Decoder(config, policy)
    return IsolatedDecoder(config, policy, processes=config.thread_count, on_replaced=on_replaced)
