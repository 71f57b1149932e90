"""Plain data as YAML: mappings and lists in lines, texts and numbers as JSON writes them.

JSON's values are YAML's, too, so that nothing here can be read in two ways, and no library is
needed for what is only ever written.

>>> print(dump({"groups": [{"name": "a", "rules": [], "of": {"x": 1}}, "b"]}), end="")
groups:
- name: "a"
  rules: []
  of:
    x: 1
- "b"
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence


def dump(value: object) -> str:
    """A document of one value."""
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: object) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, of in value.items():
            # A name that YAML could take for something else is written as a text.
            name = key if key.isidentifier() else json.dumps(key)
            lines = list(_lines(of))
            if isinstance(of, (Mapping, list, tuple)) and of:
                indent = "  " if isinstance(of, Mapping) else ""
                yield f"{name}:"
                yield from (indent + line for line in lines)
            else:
                yield f"{name}: {lines[0]}"
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for one in value:
            first, *rest = _lines(one)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield json.dumps(value, ensure_ascii=False)
