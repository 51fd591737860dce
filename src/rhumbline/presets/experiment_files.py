"""Experiment files: the fields of a protocol that a TOML file changes.

Guarantees: all faults of a file are listed at once. Independent of models and of execution.
"""

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from rhumbline.errors import InputError, ProtocolError
from rhumbline.evidence.selection_rules import ARDITI2024, BLOG2026, RHUMBLINE, STYLE
from rhumbline.evidence.verdict_rules import rule as named_rule
from rhumbline.presets.protocols import PRESETS
from rhumbline.prompts.contrasts import Sizes
from rhumbline.protocol import Protocol
from rhumbline.records.user_files import read_toml


def read_experiment(path: str | Path) -> tuple[str | None, dict[str, Any]]:
    """The preset that an experiment file (TOML) names, and its tables, which `amend` checks."""
    table = read_toml(path, ProtocolError, "an experiment file (TOML)")
    name = table.pop("preset", None)
    if name is not None and not (isinstance(name, str) and name in PRESETS):
        raise ProtocolError(f"{path}: preset is {name!r}; use one of {', '.join(PRESETS)}.")
    return name, table


def amend(protocol: Protocol, changes: Mapping[str, Any], source: str = "experiment") -> Protocol:
    """`protocol` with the fields of nested tables replaced; every unknown or ill-typed field is listed at once.

    `selection` and `rule` can also be the name of a preset, for its rule.
    """
    faults: list[str] = []
    amended = _amend(protocol, changes, "", faults)
    if faults:
        raise ProtocolError(f"{source}: " + "; ".join(faults) + ".")
    return amended


_NAMED: Mapping[str, Mapping[str, Any]] = {
    "selection": {"arditi2024": ARDITI2024, "blog2026": BLOG2026, "rhumbline": RHUMBLINE, "style": STYLE},
    "rule": {name: named_rule(name) for name in ("arditi2024", "blog2026", "rhumbline", "style")},
}


_SPLIT_NAMES = {"validation": "val"}
"""Names of splits in experiment files, and the names in protocol.json, which are read too."""


def _amend(record: Any, changes: Mapping[str, Any], at: str, faults: list[str]) -> Any:
    hints = typing.get_type_hints(type(record))
    known = [f.name for f in dataclasses.fields(record) if f.name != "preset"]
    new: dict[str, Any] = {}
    for written, value in changes.items():
        name = _SPLIT_NAMES.get(written, written) if isinstance(record, Sizes) else written
        place = f"{at}{written}"
        if name != written and name in changes:
            faults.append(f"{place} and {at}{name} are the same; write one of them")
        if name not in known:
            faults.append(f"unknown field {place} (known here: {', '.join(known)})")
            continue
        old = getattr(record, name)
        if old is None and isinstance(value, Mapping):
            # A record that is None by default is amended from its own defaults.
            old = next(
                (
                    kind()
                    for kind in typing.get_args(hints[name])
                    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
                ),
                None,
            )
        if isinstance(value, str) and place in _NAMED:
            if value in _NAMED[place]:
                new[name] = _NAMED[place][value]
            else:
                faults.append(f"{place} = {value!r} is unknown; use one of {', '.join(_NAMED[place])} or a table")
        elif dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            new[name] = _amend(old, value, f"{place}.", faults)
        else:
            try:
                new[name] = msgspec.convert(value, hints[name])
            except msgspec.ValidationError:
                faults.append(f"{place} = {value!r} does not fit {inspect.formatannotation(hints[name])}")
    try:
        return replace(record, **new)
    except InputError as error:
        faults.append(str(error).rstrip("."))
        return record
