"""Drawn traffic: streets as a fixed camera sees them, with exact labels. Numpy and OpenCV only."""

from .street import CLASS_NAMES, DEMO_SEEDS, Label, Street

__all__ = ["CLASS_NAMES", "DEMO_SEEDS", "Label", "Street"]
