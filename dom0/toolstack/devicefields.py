# SPDX-License-Identifier: GPL-2.0-only
"""The fields of a device's configuration as plain data: what xl sends, and what is believed of it.

`DiskConfig` and `NicConfig` are carried so. What their fields mean, and which values go together, they check
themselves; here it is that each is known and of its type. Pure functions.
"""

from __future__ import annotations

from typing import Any

import attrs

_LONGEST = 4096
"""Characters of a text."""


class DeviceSyntaxError(ValueError):
    """A device that cannot be; one line, without the place."""


def fields_from_plain(
    cls: type[attrs.AttrsInstance], plain: object, what: str, error: type[DeviceSyntaxError]
) -> dict[str, Any]:
    """Values for `cls`, whose fields are of bool, int or str, or None, or pairs of texts; `what` names it in errors."""
    fields = {field.name: field for field in attrs.fields(cls)}
    required = {name for name, field in fields.items() if field.default is attrs.NOTHING}
    if not isinstance(plain, dict) or not required <= plain.keys():
        raise error(f"a {what} in a domain configuration is not one")
    values: dict[str, Any] = {}
    for key, value in plain.items():
        if key not in fields or not _fits(value, str(fields[key].type)):
            raise error(f"a {what} with {key!r} = {value!r} is none")
        values[key] = tuple(tuple(pair) for pair in value) if isinstance(value, (list, tuple)) else value
    return values


def is_pair(item: object) -> bool:
    """Of texts."""
    return isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(text, str) for text in item)


def _fits(value: object, annotation: str) -> bool:
    if value is None:
        return annotation.endswith("| None")
    kind = annotation.split(" ")[0]
    if kind not in ("bool", "int", "str"):
        return isinstance(value, (list, tuple)) and all(map(is_pair, value))
    return type(value).__name__ == kind and (not isinstance(value, str) or len(value) <= _LONGEST)
