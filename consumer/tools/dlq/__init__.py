"""`sluice dlq`: look into the dead letters, and send them back once their cause is mended.

Data flow: `command` reads the options, `reading` takes records from the topic, `letters` says what they are and which
are asked for (pure), `text` shows them (pure), `progress` knows what was replayed before (pure), `replay` sends.
"""

from consumer.tools.dlq.command import app

__all__ = ["app"]
