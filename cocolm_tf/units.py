"""Numbers as people read them: three digits and a prefix; and tables of them."""

from collections.abc import Iterable, Sequence

_PREFIXES = ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k"))


def si(number: float, unit: str = "") -> str:
    """Writes a number with three digits and an SI prefix: 1.234e12, "FLOP" as 1.23 TFLOP."""
    for exponent, prefix in _PREFIXES:
        # 999,999 is 1 M, not 1e+03 k.
        if float(f"{number:.3g}") >= 10**exponent:
            return f"{number / 10**exponent:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Writes seconds with three digits in the unit that suits them, from ms to days."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"


def gib(count: float) -> str:
    """Writes bytes in GiB."""
    return f"{count / 2**30:,.2f} GiB"


def listing(rows: Iterable[tuple[str, str]]) -> str:
    """Writes names and what they are, a line each."""
    return "\n".join(f"{name:24} {value}".rstrip() for name, value in rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligns columns: the first to the left, the others to the right."""
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ([one[0].ljust(widths[0]), *map(str.rjust, one[1:], widths[1:])] for one in cells)
    return "\n".join("  ".join(line).rstrip() for line in lines)
