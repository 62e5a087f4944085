"""Which delivery core a run was of: a digest of the code that decides what becomes of a frame.

Figures of the rig are of the code that was run. A commit says too little: most commits change documents or tools, and
after those the figures still hold. So each run is kept with this digest, and the page counts the runs that have the
digest of the code as it is now.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "consumer"
# The whole package counts but for these, so that a module that is new, split or moved counts without being named. They
# cannot change a run: commands beside `run`, what only observes, and engines that the rig does not use.
LEFT_OUT = (
    "tools",
    "observability/metrics.py",
    "observability/metric_families.py",
    "observability/tracing.py",
    "detectors/device.py",
    "detectors/onnx.py",
    "detectors/postprocess.py",
    "detectors/postprocess_torch.py",
    "detectors/torch.py",
)


def digest(package: Path = PACKAGE) -> str:
    """Of the definitions: what is only for readers does not count, and neither does the module that holds a definition.

    Comments, docstrings, formatting, descriptions of options and imports inside the package are for readers. A
    definition that moves to another module runs as before, so the figures of the rig still hold.

    Raises ValueError where an entry of `LEFT_OUT` does not exist: what it named counts by its new name.
    """
    if missing := [each for each in LEFT_OUT if not (package / each).exists()]:
        raise ValueError(f"LEFT_OUT in {__file__}: there is no {', '.join(missing)} in {package}; correct the list")
    left_out = [package / each for each in LEFT_OUT]
    definitions: set[str] = set()
    for path in package.rglob("*.py"):
        if not any(path.is_relative_to(each) for each in left_out):
            tree = _WithoutWords().visit(ast.parse(path.read_bytes()))
            definitions.update(text for each in tree.body for text in _parts(each))
    return hashlib.sha256("\n".join(sorted(definitions)).encode()).hexdigest()[:12]


def _parts(node: ast.stmt) -> list[str]:
    """A module that is split needs some imports twice, so each name that is imported counts once for the package."""
    match node:
        case ast.Import(names):
            return [f"import {each.name} as {each.asname}" for each in names]
        case ast.ImportFrom(module, names):
            return [f"import {module}.{each.name} as {each.asname}" for each in names]
        case ast.Assign(targets=[ast.Name("__all__")]):
            return []
    return [ast.dump(node)]


class _WithoutWords(ast.NodeTransformer):
    """Takes out what is only for readers, and the names of the package's modules."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if node.module is not None and node.module.split(".")[0] == "consumer" else node

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        """A module of the package as a text: one that is run as a process."""
        if isinstance(node.value, str) and node.value.startswith("consumer."):
            node.value = "consumer"
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """A text that stands by itself is a docstring."""
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        node.keywords = [each for each in node.keywords if each.arg != "description"]
        self.generic_visit(node)
        return node
