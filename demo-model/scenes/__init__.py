"""Renders streets as a fixed camera sees them, with exact labels. Needs only NumPy and OpenCV."""

from .street import CLASS_NAMES, DEMO_SEEDS, Label, Street

__all__ = ["CLASS_NAMES", "DEMO_SEEDS", "Label", "Street"]
