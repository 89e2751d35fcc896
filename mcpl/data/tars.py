"""WebDataset tars: pictures, sentences and masks are members of one stem, read where they lie, never extracted.

    train-0001.tar
        000012.jpg             the picture; any ending that is one of a picture
        000012.txt             its sentence, or
        000012.json            an object with `text` or `caption`
        000012.mask.bear.png   optional: where <bear> is, above 127

Everything before the first dot of a member's base name is its stem. A row's id is its tar and stem,
`train-0001/000012`: many collections count anew in each tar. Member names are foreign text: they are shown and
compared, and no path is ever made of one.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from mcpl.data.listing import NOT_TEXT, Listed, Listing, MaskFile, Rejected, is_hidden, is_picture, is_text, weighed
from mcpl.data.storage import Entry, Store

HEADER_BYTES = 1 << 20
"""No header is longer, whatever it claims; also what is fetched at a time"""


def is_tar(name: str) -> bool:
    return name.lower().endswith(".tar") and not is_hidden(name)


@dataclass(frozen=True)
class Member:
    """A file inside a tar, by where its bytes lie."""

    tar: str
    name: str
    offset: int
    size: int

    @property
    def reference(self) -> str:
        """What `TarStore` reads it by, and what people are shown."""
        return f"{self.tar}!{self.offset}+{self.size}!{self.name}"


_REFERENCE = re.compile(r"(?P<tar>.*?\.tar)!(?P<offset>\d+)\+(?P<size>\d+)!.*", re.DOTALL | re.IGNORECASE)


class TarStore:
    """The tars of a store, opened for reading single members; only `get` and `join` of a Store are there."""

    def __init__(self, store: Store):
        self.uri, self._store = store.uri, store
        self._open: tuple[str, BinaryIO] | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": None}

    def get(self, reference: str) -> bytes:
        """A member's bytes; fewer where its tar has been cut short since it was listed."""
        place = _REFERENCE.fullmatch(reference)
        if place is None:
            raise FileNotFoundError(f"no member of a tar: {reference!r}")
        if self._open is None or self._open[0] != place["tar"]:
            if self._open:
                self._open[1].close()
            self._open = (place["tar"], io.BufferedReader(self._store.reader(place["tar"]), HEADER_BYTES))
        stored = self._open[1]
        stored.seek(int(place["offset"]))
        return stored.read(int(place["size"]))

    def join(self, reference: str) -> str:
        return f"{self.uri}/{reference}"


def list_webdataset(store: Store, name: str | None = None) -> Listing:
    """Every picture of a tar, or of all tars of a root, with its sentence and masks. Reads headers alone."""
    entries = [entry for entry in store.list(name or "") if name in (None, entry.name)]
    tars = [entry for entry in entries if is_tar(entry.name)]
    rows: list[Listed] = []
    rejected = [
        Rejected(entry.name, "hidden file" if is_hidden(entry.name) else "not a tar: its name does not end in .tar")
        for entry in entries
        if not is_tar(entry.name)
    ]
    digest = hashlib.sha256()
    with ThreadPoolExecutor(8) as pool:
        for tar, (members, faults) in zip(tars, pool.map(partial(_scan, store), tars), strict=True):
            rejected += faults
            sizes = {member.reference: member.size for member in members}
            rows += weighed(_samples(tar.name, members, rejected), sizes, rejected)
            about = "\n".join([f"{tar.name}\t{tar.size}", *(member.reference for member in members)])
            digest.update(about.encode("utf-8", "surrogateescape") + b"\0")
    return Listing(tuple(rows), tuple(rejected), digest.hexdigest()[:16], TarStore(store))


class _Headers(io.BufferedReader):
    """A tar read for its headers: nothing else is asked for, so a longer read is a header that lies."""

    def read(self, count: int | None = -1) -> bytes:
        if count is None or not 0 <= count <= HEADER_BYTES:
            raise tarfile.ReadError("a header claims to be longer than headers are")
        return super().read(count)


def _scan(store: Store, tar: Entry) -> tuple[list[Member], list[Rejected]]:
    """A tar's members, and what is wrong with it. What stands before a damaged place is kept.

    `tarfile` ends silently at a header that it cannot read, and follows sizes below zero in a circle (CVE-2025-8194):
    both are looked for here.
    """
    members: list[Member] = []
    faults: list[Rejected] = []
    end = 0
    try:
        with (
            _Headers(store.reader(tar.name), HEADER_BYTES) as stored,
            tarfile.open(fileobj=stored, mode="r:") as headers,
        ):
            while (info := headers.next()) is not None:
                if info.size < 0 or not end < info.offset_data <= headers.offset:
                    raise tarfile.ReadError("a header leads backwards")
                end = info.offset_data
                if end + info.size > tar.size:
                    raise tarfile.ReadError(f"its last member, {_shown(info.name)}, is not whole")
                end = headers.offset
                if fault := _fault(info):
                    faults.append(Rejected(f"{tar.name}!{_shown(info.name)}", fault))
                elif info.isreg():
                    members.append(Member(tar.name, info.name.removeprefix("./"), info.offset_data, info.size))
                headers.members.clear()  # tarfile remembers every header; a million of them is much
            stored.seek(end := headers.offset)
            rest = stored.read(HEADER_BYTES)
            if any(rest[: tarfile.BLOCKSIZE]):
                raise tarfile.ReadError("no header where one should be")
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as fault:
        told = f"the tar is cut short or damaged: {fault} (about byte {end}; what stands before is read)"
        return members, [*faults, Rejected(tar.name, told)]
    if tar.size == end:
        faults.append(Rejected(tar.name, "the tar has no end mark: it may have been cut short", repaired=True))
    elif rest.strip(b"\0"):  # two tars joined by `cat`
        faults.append(Rejected(tar.name, f"bytes after the tar's end mark: {tar.size - end} are not read"))
    return members, faults


def _fault(info: tarfile.TarInfo) -> str | None:
    """Why a member cannot be read; folders are no fault."""
    parts = info.name.removeprefix("./").split("/")
    if not is_text(info.name):
        return NOT_TEXT
    if info.issparse() or not (info.isreg() or info.isdir()):
        return "member that is no plain file"
    if info.name.startswith("/") or ".." in parts:
        return "member whose name leaves the tar"
    if info.isreg() and any(part.startswith(".") for part in parts):
        return "hidden file"
    return None


def _shown(name: str) -> str:
    return name if is_text(name) else ascii(name)


def _samples(tar: str, members: Sequence[Member], rejected: list[Rejected]) -> Iterator[Listed]:
    """Members of one stem as a row, in the order of the stems."""
    stems: dict[str, dict[str, Member]] = {}
    for member in members:
        folder, slash, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        parts = stems.setdefault(folder + slash + stem, {})
        if parts.setdefault(ending.lower(), member) is not member:
            rejected.append(Rejected(f"{tar}!{member.name}", "second member of one name: the first is read"))
    unread: Counter[str] = Counter()
    for stem, parts in stems.items():
        id = f"{tar[: -len('.tar')]}/{stem}"
        picture = next((ending for ending in parts if is_picture(f".{ending}") and "." not in ending), None)
        sentence = next((ending for ending in ("txt", "json") if ending in parts), None)
        masks = {ending: word for ending in parts if (word := _mask_word(ending))}
        unread.update(ending for ending in parts if ending not in (picture, "txt", "json", *masks))
        if picture is None:
            rejected.append(Rejected(id, "no picture: none of its name in the tar"))
        elif sentence is None:
            rejected.append(Rejected(id, "no sentence: no .txt or .json of its name in the tar"))
        else:
            names = {word: (MaskFile(parts[ending].reference),) for ending, word in masks.items()}
            yield Listed(id, parts[picture].reference, None, parts[sentence].reference, names)
    for ending, count in unread.most_common():
        rejected.append(Rejected(tar, f"members that are not read: .{ending[:40]} ({count})", repaired=True))


def _mask_word(ending: str) -> str | None:
    """`bear` of `mask.bear.png`."""
    kind, _, rest = ending.partition(".")
    word, _, suffix = rest.rpartition(".")
    return word if kind == "mask" and word and is_picture(f".{suffix}") else None
