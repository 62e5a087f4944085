"""`sluice demo`: broker, cameras and consumer on one machine, and pictures of the detections.

Data flow: `command` reads the options, `sources` opens the cameras, `run` starts broker and consumer and streams.
`audit` reads the topics, `summary` computes the figures (pure), `draw` and `overview` draw the pictures, `report`
prints the table.
"""

from consumer.tools.demo.command import demo

__all__ = ["demo"]
