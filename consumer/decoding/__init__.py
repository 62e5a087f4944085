"""Encoded bytes in, a letterboxed RGB canvas in the batch's slot out, or `Rejected`. Pure and thread-safe."""

from consumer.decoding.decoder import Decoder, configure_opencv

__all__ = ["Decoder", "configure_opencv"]
