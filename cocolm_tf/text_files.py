"""Opening the text files that a user names: their encoding, their compression, their lines.

All readers of text go through here, so that a byte order mark, compression or another encoding
means the same to each of them. A file that is no text is refused with the name of what it is.
"""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from absl import logging

from cocolm_tf import files
from cocolm_tf.errors import UserError

_CHUNK = 1 << 20
# The bytes of a file by which its format is detected.
_HEAD = 1 << 16
# The most commas of a file name in a list of several.
_MOST_COMMAS = 8
# The share of bad records means little for fewer records.
_MANY_RECORDS = 1000

# The longer marks first: UTF-32's begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    # A level and the beginning of a block, or of the end: "BZh" alone may begin a text.
    **{b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)},
    **{b"BZh%d\x17\x72\x45\x38\x50\x90" % level: "bzip2" for level in range(1, 10)},
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".lz4")
_KINDS = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"FEA1": "a Feather file",
    b"Obj\x01": "an Avro file",
    b"ORC": "an ORC file",
    b"PK\x03\x04": "a zip archive, as the files of Excel and Word are",
    b"PK\x05\x06": "an empty zip archive",
    b"\xd0\xcf\x11\xe0": "an old file of Excel or Word",
    b"%PDF-": "a PDF",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x1f\x9d": "a file of the program compress",
    b"\x7fELF": "a program",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x93NUMPY": "a NumPy file",
    **{b"\x80%c" % version: "a pickle" for version in range(2, 6)},
    **{magic: f"{name} data inside other compressed data" for magic, name in _COMPRESSIONS.items()},
}
_TAR_AT, _TAR = 257, b"ustar"
# The largest share of NULs in a text.
_MAX_NULS = 0.3
# Characters of files that are no text. Form feeds, escapes and separators are in some texts.
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a]")
# "surrogateescape" decodes invalid bytes to these.
_BAD = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class BadRecords:
    """Counts the bad records of a file, and stops the reading where their share is too large."""

    # A record is the unit of the file's format: a line of text, a row of a table, a page. It is bad
    # if it cannot be read, and is then left out, or if some of its bytes are invalid in the
    # encoding, which become U+FFFD. The unreadable rest of a broken compressed file counts as the
    # records that its bytes would hold, and as one at least. `max_bad_share` is None where no flag
    # allows bad records.

    def __init__(self, path: str, max_bad_share: float | None = None, unit: str = "lines") -> None:
        self.path, self.unit = path, unit
        self.read = self.bad = 0
        self.file: BinaryIO | None = None  # being read, to find how much of it is left
        self._max_bad_share = max_bad_share
        self._unread = 0.0  # relative to what was read
        self._complaint = self._advice = ""

    def complain(self, what: str, advice: str = "") -> None:
        """Keeps the first complaint; raises it if no record may be bad."""
        if not self._complaint:
            self._complaint, self._advice = what, advice
        if not self._max_bad_share:
            raise UserError(self._message())

    def add(self, what: str, count: int = 1, advice: str = "") -> None:
        """Counts bad records among those that `read` has."""
        self.complain(what, advice)
        self.bad += count
        # The share means little before there are many records.
        if self.read > _MANY_RECORDS:
            self._stop_if_bad()

    def lose(self, what: str, count: int) -> None:
        """Counts records that cannot be read at all."""
        self.read += count
        self.add(what, count)

    def lose_rest(self, what: str) -> None:
        """Counts the unread bytes as lost records; at least one."""
        self.lose(what, 1)
        if self.file is not None and self.file.seekable():
            done = max(1, self.file.tell())
            self._unread = max(0, files.size(self.path) - done) / done

    def finish(self) -> None:
        """Warns of the bad records, now that all records are known."""
        rest = math.ceil((self.read - 1) * self._unread)
        self.read += rest
        self.bad += rest
        self._stop_if_bad()
        if self.bad:
            logging.warning(
                "%s; %d of %d %s are bad: left out, or with U+FFFD for bytes of no character.",
                self._complaint,
                self.bad,
                self.read,
                self.unit,
            )

    def _stop_if_bad(self) -> None:
        if self.bad > (self._max_bad_share or 0) * self.read:
            raise UserError(self._message(f", and {self.bad} of {self.read} {self.unit} are bad"))

    def _message(self, more: str = "") -> str:
        advice = [self._advice] if self._advice else []
        if self._max_bad_share is not None:
            advice.append(f"--max_bad_share lets a few bad {self.unit} pass")
        return f"{self._complaint}{more}" + (f". {'; '.join(advice)}." if advice else ".")


def text_lines(
    path: str,
    encoding: str | None = None,
    records: BadRecords | None = None,
    longest: int | None = None,
) -> Iterator[str]:
    """Yields the lines of a text file, ends included; UserError names the file, line and byte."""
    # A byte order mark decides the encoding; the compression (gzip, bzip2, xz, zstd, lz4) is
    # detected by content, whatever the file's name. A line ends with a line feed; in a file that
    # begins without one, as old Macs wrote them, with a carriage return. No other character ends
    # one: texts have them.
    # `encoding` is for files without a mark: "" for UTF-8 where --encoding was not given, None for
    # UTF-8 where there is no such flag. Lines of more than `longest` characters come in parts, cut
    # before white space where there is some; only the last part has the line's end.
    records = records or BadRecords(path)
    text_of = _Decoder(encoding, records)
    newline = None
    rest: list[str] = []  # The beginning of a line whose end has not been read.
    for text in text_of.chunks():
        if longest and rest and sum(map(len, rest)) > longest:
            *parts, last = cut_at_space("".join(rest), longest)
            yield from text_of.checked(parts)
            rest = [last]
        if newline is None:
            # The last character may be the first half of the end of a line.
            known = (rest[-1][-1] if rest else "") + text
            newline = "\n" if "\n" in known else "" if "\r" in known[:-1] else None
            if newline is None:
                rest.append(text)
                continue
        if newline == "" and rest and rest[-1].endswith("\r") and not text.startswith("\n"):
            yield from text_of.checked(["".join(rest)])
            rest = []
        # Keeps the ends as they are; "" stands for any of the three.
        lines = list(io.StringIO(text, newline))
        if rest and lines == [text] and not text.endswith("\n"):
            rest.append(text)
            continue
        if rest:
            lines[0] = "".join([*rest, lines[0]])
        rest = [] if lines[-1].endswith("\n") else [lines.pop()]
        if longest:
            lines = [part for line in lines for part in cut_at_space(line, longest)]
        yield from text_of.checked(lines)
    if rest:
        last = "".join(rest)
        records.read += not last.endswith(("\n", "\r"))
        yield from text_of.checked(cut_at_space(last, longest) if longest else [last])
    records.finish()


def read_text(path: str, encoding: str | None = None) -> str:
    """Reads a whole text file, as `text_lines` does."""
    return "".join(text_lines(path, encoding))


def cut_at_space(line: str, longest: int) -> list[str]:
    """Cuts a text into parts of limited length, before white space where there is some."""
    parts, start = [], 0
    while len(line) - start > longest:
        head = line[start : start + longest]
        words = head.rsplit(None, 1)
        # Without white space at the end, and then without the last word.
        inked = len(head.rstrip())
        place = inked if inked < longest else len(words[0]) if len(words) == 2 else longest
        if place:
            parts.append(head[:place])
        start += place or longest  # A part of white space alone is left out.
    return [*parts, line[start:]]


def without_surrogates(text: str) -> str:
    """Replaces lone surrogates, which JSON can hold and no encoding can, with U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def check_encoding(encoding: str | None) -> None:
    """Refuses an encoding that Python does not know."""
    try:
        b"a".decode(encoding or "utf-8", "ignore")
    except (LookupError, ValueError) as error:
        raise UserError(
            f"--encoding={encoding} is no encoding of text that Python knows, as utf-8, cp1252 or "
            "utf-16-le."
        ) from error


def matching_files(pattern: str, files_in: Callable[[str], list[str]] | None = None) -> list[str]:
    """The files that comma-separated globs match, sorted, each once; UserError for no match."""
    # The path of a file means that file, whatever characters it has; `[,]` is a literal comma,
    # `[[]` a bracket. `files_in` gives the files that a folder stands for. Links and `./` make no
    # duplicates.
    # A comma in brackets is part of its glob.
    parts = re.findall(r"(?:\[[^\[\]]*\]|[^,])+", pattern)
    parts = list(filter(None, map(str.strip, parts)))
    paths: set[str] = set()
    place = 0
    while place < len(parts):
        ends = range(min(len(parts), place + _MOST_COMMAS), place, -1)
        # Up to as many parts as may be one file name with commas.
        names = ((",".join(parts[place:end]), end) for end in ends)
        name, end = next(((n, e) for n, e in names if files.exists(n)), ("", place + 1))
        matched = [name] if name else _glob(parts[place])
        found = list(filter(files.is_file, matched))
        if files_in is not None:
            folders = [one for one in matched if one not in found]
            found += [file for folder in folders for file in files_in(folder)]
        if not found:
            is_folder = f": {name} is a folder, give a glob of its files" if name else ""
            raise UserError(f"no file matches {parts[place]!r}{is_folder}.")
        paths.update(found)
        place = end
    if not paths:
        raise UserError(f"{pattern!r} is no pattern: give the glob of the files to read.")
    # One file may have several names: by ./, by links. The first of them is its name here.
    once = {
        path if files.is_remote(path) else os.path.realpath(path): path
        for path in sorted(paths, reverse=True)
    }
    return sorted(once.values())


class _Decoder:
    """Decodes the bytes of a file, and reports the invalid ones."""

    def __init__(self, encoding: str | None, records: BadRecords) -> None:
        check_encoding(encoding)
        self._path, self._encoding, self._records = records.path, encoding, records
        self._codec = encoding or "utf-8"
        self._has_mark = False
        self._line = 1
        self._complaint = self._advice = ""

    def chunks(self) -> Iterator[str]:
        """Yields the text in non-empty parts; invalid bytes stand there as surrogates."""
        chunks = _chunks(self._path, self._records)
        head = next(chunks, b"")
        mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
        self._has_mark = bool(mark)
        if mark:
            self._codec = _MARKS[mark]
        else:
            check_is_text(self._path, head, self._encoding)
        if not mark and codecs.lookup(self._codec).name in ("utf-16", "utf-32"):
            raise UserError(
                f"{self._path} has no byte order mark: say --encoding={self._codec}-le or "
                f"--encoding={self._codec}-be."
            )
        make = codecs.getincrementaldecoder(self._codec)
        strict, lenient = make("strict"), make("surrogateescape")
        offset, chunk = len(mark), head[len(mark) :]
        while chunk is not None:
            following = next(chunks, None)
            is_last = following is None
            state = strict.getstate()
            try:
                text = strict.decode(chunk, is_last)
            except UnicodeDecodeError as error:
                self._complain(error, offset - len(state[0]))
                try:
                    lenient.setstate(state)
                    text = lenient.decode(chunk, is_last)
                except UnicodeDecodeError:  # The damage is not of single bytes.
                    raise self._refusal() from error
                strict.setstate(lenient.getstate())
            if text:
                yield text
            offset += len(chunk)
            chunk = following

    def checked(self, lines: list[str]) -> list[str]:
        """Counts lines, and replaces their invalid bytes with U+FFFD."""
        ended = sum(line.endswith(("\n", "\r")) for line in lines)
        self._line += ended
        self._records.read += ended
        if not self._complaint:
            return lines
        if bad := sum(_BAD.search(line) is not None for line in lines):
            self._records.add(self._complaint, bad, self._advice)
        return [_BAD.sub("\ufffd", line) for line in lines]

    def _complain(self, error: UnicodeDecodeError, offset: int) -> None:
        """Keeps the first fault, which is all that is reported where none is allowed."""
        if self._has_mark:
            self._advice = "Its byte order mark says that it is: the file is damaged"
        elif self._encoding is None:
            self._advice = "Convert the file to UTF-8"
        elif self._encoding:
            self._advice = f"--encoding={self._encoding} is not the right one"
        else:
            self._advice = "If it is in another encoding, name that: --encoding=cp1252, say"
        before = error.object[: error.start].decode(self._codec, "replace")
        line = self._line + (before.count("\n") or before.count("\r"))
        self._complaint = self._complaint or (
            f"{self._path}:{line} is not {self._codec.upper()}: byte "
            f"{offset + error.start} of the text is 0x{error.object[error.start]:02X}"
        )
        self._records.complain(self._complaint, self._advice)
        # Past damage, two bytes a character or four are no longer the right ones.
        if self._codec.startswith(("utf-16", "utf-32")):
            raise self._refusal() from error

    def _refusal(self) -> UserError:
        return UserError(f"{self._complaint}. {self._advice}.")


def check_is_text(path: str, head: bytes, encoding: str | None) -> None:
    """Raises UserError with a file's format unless its first bytes are text in that encoding."""
    is_utf8 = _is_utf8(head)
    if not looks_like_text(head):
        kind = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), "")
        if head.startswith(_TAR, _TAR_AT):
            kind = "a tar archive"
        if kind:
            raise UserError(f"{path} is {kind}, not text: give the text that is in it.")
    nuls = head.count(0)
    if encoding or not nuls:
        return
    advice = "convert it to UTF-8" if encoding is None else "if it is text, name its encoding: {}"
    if wide := _wide_encoding(head):
        advice = advice.format(f"--encoding={wide}")
        raise UserError(f"{path} looks like {wide.upper()} without a byte order mark; {advice}.")
    if not is_utf8 or nuls > _MAX_NULS * len(head):
        advice = advice.format("--encoding=utf-16-le, say")
        raise UserError(f"{path} is binary data and not text, by its {nuls} NUL bytes; {advice}.")


def looks_like_text(head: bytes) -> bool:
    """Whether the first bytes of a file are UTF-8 without control characters unusual in texts."""
    return _is_utf8(head) and not _CONTROL.search(head)


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _wide_encoding(head: bytes) -> str:
    """The UTF-16 or UTF-32 encoding that the places of NULs point to."""

    def nuls(start: int, step: int) -> float:
        places = head[start::step]
        return places.count(0) / max(1, len(places))

    for order, places, low in (("le", (2, 3), 0), ("be", (0, 1), 3)):
        if min(nuls(place, 4) for place in places) > 0.9 and nuls(low, 4) < 0.1:
            return f"utf-32-{order}"
    for order, high, low in (("le", 1, 0), ("be", 0, 1)):
        if nuls(high, 2) > 0.6 and nuls(low, 2) < 0.1:
            return f"utf-16-{order}"
    return ""


def has_byte_order_mark(head: bytes) -> bool:
    """Whether a file begins with a byte order mark."""
    return head.startswith(tuple(_MARKS))


def first_bytes(path: str) -> bytes:
    """The decompressed beginning of a file, by which its format is detected; nothing of pipes."""
    if not files.is_remote(path) and not os.path.isfile(path):
        return b""
    with contextlib.closing(_chunks(path, BadRecords(path))) as chunks:
        return next(chunks, b"")


def open_binary(path: str, records: BadRecords) -> io.BufferedReader:
    """Opens a file for reading its decompressed bytes."""
    return io.BufferedReader(_Joined(_chunks(path, records)), _HEAD)


class _Joined(io.RawIOBase):
    """A file object over parts, one after the other."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._chunk = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._chunk and (chunk := next(self._chunks, None)) is not None:
            self._chunk = memoryview(chunk)
        count = min(len(buffer), len(self._chunk))
        buffer[:count], self._chunk = self._chunk[:count], self._chunk[count:]
        return count


def _chunks(path: str, records: BadRecords) -> Iterator[bytes]:
    """Yields the decompressed bytes of a file: the head, which may be empty, and the rest."""
    try:
        with contextlib.ExitStack() as stack:
            raw = records.file = stack.enter_context(files.open_read(path))
            start = raw.peek(16)
            found = (name for magic, name in _COMPRESSIONS.items() if start.startswith(magic))
            compression = next(found, "")
            file = stack.enter_context(_decompressed(raw, compression)) if compression else raw
            try:
                # What is available at once: a pipe may block for more, and a broken file
                # gives all that comes before the damage.
                yield file.read1(_HEAD)
                while chunk := file.read1(_CHUNK):
                    yield chunk
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                # The libraries raise an OSError without a number for broken data.
                if not compression or getattr(error, "errno", None) is not None:
                    raise
                records.lose_rest(f"{path} is a broken {compression} file: {error}")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}.") from error


def _decompressed(file: BinaryIO, compression: str) -> BinaryIO:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=file)
    if compression == "bzip2":
        return bz2.BZ2File(file)
    if compression == "xz":
        return lzma.LZMAFile(file)
    # TensorFlow Datasets brings it.
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(file, compression), _CHUNK)


def _glob(pattern: str) -> list[str]:
    try:
        return files.glob(pattern)
    except OSError as error:
        raise UserError(f"{pattern}: {error.strerror}.") from error
