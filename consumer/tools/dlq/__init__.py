"""`sluice dlq`: inspect the dead letters, and replay them after the cause is fixed.

Data flow: `command` reads the options. `consumer.tools.kafka.reader` reads records from the topic. `dead_letters`
parses and selects them (pure). `formatting` renders them (pure). `progress` records what was replayed before (pure).
`replay` reads, selects and sends, through a `replay_writer`. `replay_job` runs it for the command.
"""

from consumer.tools.dlq.command import app

__all__ = ["app"]
