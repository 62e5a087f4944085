"""Infer: the inference thread and the decode pool. Frames go in, batch results come out, in order.

`worker` is the thread and what the main thread may ask of it; `assembly` knows which frame lies in which slot;
`decoding` is the pool that fills the slots.
"""

from consumer.inference.slots import BATCHES
from consumer.inference.worker import Worker

__all__ = ["BATCHES", "Worker"]
