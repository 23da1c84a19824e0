"""A corpus that processes can read, which import this file alone."""

from collections.abc import Iterator


class Parts:
    """A corpus in parts, as `data.sources.Source` is one."""

    parts = tuple(f"part-{number:02}" for number in range(40))

    def documents(self, part: str) -> Iterator[str]:
        yield from (f"{part.replace('-', '')} says {word}" for word in ("the", "cat", "sat") * 9)

    def __iter__(self) -> Iterator[str]:
        for part in self.parts:
            yield from self.documents(part)
