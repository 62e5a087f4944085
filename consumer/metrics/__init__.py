"""What the program says of itself in numbers. `metrics` has every metric; `families` is how they are declared."""

from consumer.metrics.metrics import Metrics

__all__ = ["Metrics"]
