"""Results as text: the keys of their JSON, with units that follow from the keys."""

from collections.abc import Callable, Mapping
from typing import Any

from cocolm_tf.units import duration, gib, listing, si, table


def format_result(
    result: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> str:
    """Formats a result for a terminal: its plain values, then tables by their titles."""
    sections = [
        listing(
            (name, _cell(name, value))
            for name, value in result.items()
            if value not in (None, [], {}) and not _is_nested(value)
        )
    ]
    for title, rows in (tables or {}).items():
        flat = {name: _flattened(row) for name, row in rows.items()}
        columns = list(dict.fromkeys(column for row in flat.values() for column in row))
        cells = [
            [name, *(_cell(column, row.get(column)) for column in columns)]
            for name, row in flat.items()
        ]
        sections.append(table([title, *columns], cells))
    return "\n\n".join(sections)


def _flattened(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose mappings of spreads are columns of their own."""
    flat = {}
    for name, value in row.items():
        inner = value if _is_nested(value) else {}
        flat |= {f"{name}: {key}": one for key, one in inner.items()} or {name: value}
    return flat


def _is_nested(value: Any) -> bool:
    values = value.values() if isinstance(value, Mapping) else value
    return isinstance(value, Mapping | list) and any(
        isinstance(one, Mapping | list) for one in values
    )


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, Mapping) and "median" in value:
        low, middle, high = (
            _cell(name, value[part]) for part in ("first_quartile", "median", "third_quartile")
        )
        return f"{middle} ({low} to {high})"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(f'{name}: {key}', one)}" for key, one in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool | str):
        return str(value)
    return _unit(name)(value)


def _unit(name: str) -> Callable[[float], str]:
    key = name.rpartition(": ")[2]
    if "flops" in name and "growth" not in name:
        return lambda flops: si(flops, "FLOP/s" if "per_second" in name else "FLOP")
    if "memory" in name and "seconds" not in name and "share" not in name:
        return gib
    if key.startswith("bytes") or key.endswith("bytes"):
        return lambda count: si(count, "B")
    if key.endswith("seconds"):
        return duration
    if "share" in name:
        return "{:.1%}".format
    return lambda number: f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"
