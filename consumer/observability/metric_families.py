"""Creates metrics in a registry, with histograms that are fast for many values at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

_PREFIX: Final = "sluice_"
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Distribution:
    """One series of a histogram, for values that come in batches.

    One thread may write while others read.

    `prometheus_client.Histogram` takes two locks per value. With thousands of frames per second, that is a measurable
    part of the time of the main thread (docs/performance.md). This class has only a list of counts.

    Args:
        buckets: The upper bounds of the buckets, ascending, without infinity.
    """

    def __init__(self, buckets: Sequence[float] = _SECONDS) -> None:
        self._bounds = [*buckets, float("inf")]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, values: Iterable[float]) -> None:
        """Add values. Each is counted in the first bucket whose bound is at least the value."""
        bounds, counts = self._bounds, self._counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            self._sum += value

    def series(self) -> tuple[list[tuple[str, float]], float]:
        """Return (bound, number of values up to it) for each bucket, and the sum of all values."""
        names = [*map(str, self._bounds[:-1]), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True)), self._sum


class _Distributions(Collector):
    """A histogram with one `Distribution` per label value, or a single one without a label."""

    def __init__(self, name: str, meaning: str, series: dict[str, Distribution], label: str | None = None) -> None:
        self._name, self._meaning, self._label, self._series = name, meaning, label, series

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._meaning, labels=[self._label] if self._label else [])
        for value, distribution in self._series.items():
            buckets, total = distribution.series()
            family.add_metric([value] if self._label else [], buckets, total)
        yield family


class Families:
    """Creates metrics in a registry of its own.

    Attributes:
        registry: The registry.
        labels: The label names of each metric that has labels, by the full name of the metric.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.labels: dict[str, tuple[str, ...]] = {}

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        """Create a counter, which only increases. `name` ends in `_total`."""
        return Counter(self._declared(name, labels), meaning, labels, registry=self.registry)

    def gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        """Create a gauge, which has the current value."""
        return Gauge(self._declared(name, labels), meaning, labels, registry=self.registry)

    def histogram(self, name: str, meaning: str, *labels: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
        """Create a histogram for values that come one by one."""
        return Histogram(self._declared(name, labels), meaning, labels, registry=self.registry, buckets=buckets)

    def distributions(
        self, name: str, meaning: str, label: str | None = None, values: Sequence[str] = ("",)
    ) -> dict[str, Distribution]:
        """Create a histogram for values that come in batches.

        Args:
            name: The name, without the prefix.
            meaning: The help text.
            label: The name of its label, or None.
            values: All values of the label.

        Returns:
            One distribution per label value; without a label, a single one under the key "".
        """
        series = {value: Distribution() for value in values}
        full = self._declared(name, (label,) if label else ())
        self.registry.register(_Distributions(full, meaning, series, label))
        return series

    def _declared(self, name: str, labels: tuple[str, ...]) -> str:
        full = _PREFIX + name
        if labels:
            self.labels[full] = labels
        return full
