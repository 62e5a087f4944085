"""Sluice: a Kafka consumer group that turns encoded camera frames into detections on a GPU."""

__version__ = "0.1.0"
