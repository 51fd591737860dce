"""`code_sha256`: a hash of the code of this package that computes results.

Comments, docstrings and layout do not change it, so a run can resume after they change. The packages that only display
results (`report`, `cli`) do not count.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path
from typing import Any, no_type_check

DISPLAY_ONLY = ("report", "cli")
"""Packages that change no number."""


@cache
def code_sha256() -> str:
    """Hash of the source files of rhumbline that compute results."""
    return sources_sha256(Path(__file__).parents[1])


def sources_sha256(package: Path) -> str:
    """Hash of the names and the code of the Python files of a package."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in DISPLAY_ONLY:
            digest.update(f"{name.as_posix()}\0{_code(ast.parse(path.read_bytes()))}\0".encode())
    return digest.hexdigest()


@no_type_check  # Called for every node: the run-time type checks of the tests would take seconds.
def _code(value: Any) -> str:
    """A syntax tree as text, without positions, empty fields and strings that are statements (docstrings).

    Unlike `ast.dump`, it does not depend on the version of Python for code that both versions accept.
    """
    match value:
        case ast.AST():
            fields = (
                f"{name}={_code(part)}" for name, part in ast.iter_fields(value) if part is not None and part != []
            )
            return f"{type(value).__name__}({','.join(fields)})"
        case list():
            return f"[{','.join(_code(part) for part in value if not _is_docstring(part))}]"
        case _:
            return repr(value)


@no_type_check
def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
