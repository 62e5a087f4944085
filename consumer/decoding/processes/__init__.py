"""Decodes images in separate processes, outside the lock of the interpreter.

A process that hangs or uses too much memory can be killed. The modules:

- `pool` distributes frames to the processes.
- `process` controls one process from the parent.
- `child` runs in the process.
- `memory` is the memory that both share.
- `protocol` defines their messages.

This module imports nothing. Without the imports of the parent, a decoding process starts in a quarter of the time.
"""
