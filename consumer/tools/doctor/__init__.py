"""`sluice doctor`: checks configuration, model and cluster before the program runs. Changes nothing.

`command` reads the options, `runner` runs the checks under one deadline, and `checks` lists them. A check yields
`findings`. Some modules query one part of the system (`model`, `connectivity`, `cluster`, `sample`, `http_port`). The
others evaluate what was found (`settings`, `topics`, `rights`, `sizes`, `group`, `frames`), without I/O.
"""

from consumer.tools.doctor.command import doctor

__all__ = ["doctor"]
