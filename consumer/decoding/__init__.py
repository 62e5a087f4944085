"""Decodes encoded images into letterboxed RGB canvases, or rejects them. Pure and thread-safe."""

from consumer.decoding.decoder import Decoder, configure_opencv

__all__ = ["Decoder", "configure_opencv"]
