"""Runs inference: takes frames in, forms batches, and returns the results in order.

- `worker` has the inference thread, and the interface for the main thread.
- `batcher` decides which frames form a batch, and when.
- `slots` assigns frames to slots and starts their decoding.
- `ring_buffer` manages the memory of the slots.
"""

from consumer.inference.slots import BATCHES
from consumer.inference.worker import Worker

__all__ = ["BATCHES", "Worker"]
