"""`sluice demo`: the whole of Sluice on one machine: a broker, cameras, the real consumer, and pictures of what it saw.

Data flow: `command` reads the options, `sources` makes the cameras, `run` starts everything (`broker`, `subject`) and
streams, `audit` reads back what the topics hold, `summary` counts it (pure), `draw` and `overview` make the pictures,
`report` the table.
"""

from consumer.tools.demo.command import demo

__all__ = ["demo"]
