"""`python -m consumer.tools.bench`: runs the command from a source tree that is not installed."""

import typer

from consumer.tools.bench import bench

if __name__ == "__main__":
    typer.run(bench)
