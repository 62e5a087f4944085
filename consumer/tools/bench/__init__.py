"""`sluice bench`: measures the real program, with a broker and a producer in processes of their own beside it.

Data flow: `command` reads the options, `plan` says which runs there are, `trial` makes one of them (with `feeder`,
`plain_loop` and `alone` as child processes), `outcome` checks and computes what came of it, `report` shows it.
"""

from consumer.tools.bench.command import bench

__all__ = ["bench"]
