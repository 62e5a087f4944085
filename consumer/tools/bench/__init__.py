"""`sluice bench`: measures `sluice run` with a broker and a load generator in processes of their own.

Data flow: `command` reads the options, `plan` selects the runs, `trials` makes one of them in an `environment`.
`load_generator`, `result_reader`, `plain_loop` and `baseline` are child processes. `analysis` checks and computes the
outcome, `report` shows it.
"""

from consumer.tools.bench.command import bench

__all__ = ["bench"]
