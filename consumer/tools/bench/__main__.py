"""`python -m consumer.tools.bench`: the command by itself, for a copy of the tree that is not installed."""

import typer

from consumer.tools.bench import bench

if __name__ == "__main__":
    typer.run(bench)
