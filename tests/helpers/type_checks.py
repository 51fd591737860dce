"""The type checker of the import hook: beartype, applied at the first call and once per signature.

The hook decorates every function of the package when its module is imported, and a nested function again whenever the
outer one runs. Beartype compiles a check each time, which takes longer than most of the calls that are checked.
"""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))
_compiled: dict[tuple, Callable] = {}


def check(function: Callable) -> Callable:
    """A function that checks its arguments as the annotations of `function` say; used by pyproject.toml."""
    name, variables = function.__qualname__, function.__code__.co_varnames
    signature = function.__module__, name, variables, str(function.__annotations__)

    def checked(*arguments, **keywords):
        if signature not in _compiled:
            _compiled[signature] = _beartype(function)
        return _compiled[signature](*arguments, **keywords)

    return checked
