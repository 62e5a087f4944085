"""`sluice doctor`: is everything as the program needs it? Looks at the configuration, the model, the cluster; changes
nothing.

`findings` is what a check says, `examination` runs the checks under one deadline, `command` is the way in. Each of the
other modules asks one part of the world (`model`, `connectivity`, `cluster`, `sample`) or judges what was found there
(`settings`, `topics`, `rights`, `sizes`, `group`, `frames`): the second kind does no I/O.
"""

from consumer.tools.doctor.command import doctor

__all__ = ["doctor"]
