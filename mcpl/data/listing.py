"""Folders of pictures and sentences, listed before anything is read: what is a row, what is not and why."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from mcpl.data.pictures import BINARY_THRESHOLD, SUFFIXES, aligned_mask, check_bytes, load_picture, mask_png
from mcpl.data.storage import Entry, Store, checked_name
from mcpl.errors import ConfigError, ExampleError
from mcpl.types import Example

_PARTICULARS = re.compile(r"(?<!\w)'[^']*'|\"[^\"]*\"|<[^>]*>|\d[\d.]*(?: x \d+)?")


@dataclass(frozen=True)
class Rejected:
    """Something of a dataset that becomes no row, or was read otherwise than it was written."""

    id: str
    """the picture's id, or the place: a file, a line"""
    reason: str
    repaired: bool = False
    """True: nothing is lost, we only say how it was read"""

    @property
    def kind(self) -> str:
        """The reason without its particulars, to count by."""
        return _PARTICULARS.sub("…", self.reason).partition(": ")[0]


@dataclass(frozen=True)
class MaskFile:
    """A mask as stored, and the grey value above which a pixel belongs to the object."""

    name: str
    threshold: int = BINARY_THRESHOLD


@dataclass(frozen=True)
class Listed:
    """A row to be: where its parts are."""

    id: str
    picture: str
    text: str | None
    """the sentence, or None where `text_file` holds it"""
    text_file: str | None = None
    masks: Mapping[str, tuple[MaskFile, ...]] = field(default_factory=dict)
    """word -> its mask's files, the preferred one first"""
    bytes: int = 0
    """stored size of all its parts"""
    group: str | None = None
    """name shared by pictures of the same concepts"""


@dataclass(frozen=True)
class Listing:
    """A folder as a dataset, before any picture is read."""

    rows: tuple[Listed, ...]
    rejected: tuple[Rejected, ...]
    digest: str
    """of names, sizes and sentences"""
    store: Store
    """where the rows' names are read"""


def weighed(rows: Iterable[Listed], sizes: Mapping[str, int], rejected: list[Rejected]) -> tuple[Listed, ...]:
    """The rows with their stored sizes, before anything of them is read; what is too large to be read is rejected: a
    mask alone, a picture or a sentence with its row."""
    kept = []
    for row in rows:
        masks = {word: tuple(_readable(files, sizes, rejected)) for word, files in row.masks.items()}
        names = [row.picture, *([row.text_file] if row.text_file else ())]
        try:
            for name in names:
                check_bytes(sizes[name])
        except ExampleError as fault:
            rejected.append(Rejected(row.id, str(fault)))
            continue
        names += [file.name for files in masks.values() for file in files]
        kept.append(replace(row, masks=masks, bytes=sum(sizes[name] for name in names)))
    return tuple(kept)


def _readable(files: Iterable[MaskFile], sizes: Mapping[str, int], rejected: list[Rejected]) -> Iterator[MaskFile]:
    for file in files:
        try:
            check_bytes(sizes[file.name])
            yield file
        except ExampleError as fault:
            rejected.append(Rejected(file.name, f"unusable mask: {fault}", repaired=True))


def listing_digest(entries: Iterable[Entry], *texts: bytes) -> str:
    """16 hex digits over names, sizes and the given texts."""
    content = "\n".join(f"{entry.name}\t{entry.size}" for entry in sorted(entries, key=lambda e: e.name))
    return hashlib.sha256(b"\0".join([content.encode("utf-8", "surrogateescape"), *texts])).hexdigest()[:16]


def is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def is_text(value: object) -> bool:
    """A string that UTF-8 can hold; undecodable file names and lone surrogates in JSON are none."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


NOT_TEXT = "its name is not UTF-8"


def list_folder(store: Store, name: str | None = None) -> Listing:
    """Pictures with a `metadata.jsonl` (`file_name`, `text`, optional `image_id` and `group`), or a `.txt` of the same
    name each."""
    entries = store.list()
    sizes = {entry.name: entry.size for entry in entries}
    rows: list[Listed] = []
    rejected: list[Rejected] = []
    tables = [name for name in sizes if PurePosixPath(name).name == "metadata.jsonl" and not is_hidden(name)]
    texts = [store.get(name) for name in tables]
    used = set(tables)
    for table, content in zip(tables, texts, strict=True):
        for row in _metadata_rows(table, content, sizes):
            (rows if isinstance(row, Listed) else rejected).append(row)
            if isinstance(row, Listed):
                used.add(row.picture)
    sentences = {} if tables else {name[:-4]: name for name in sizes if name.endswith(".txt")}
    for name in sizes:
        if name in used:
            continue
        sentence = sentences.get(name.rpartition(".")[0])
        if is_hidden(name):
            rejected.append(Rejected(name, "hidden file"))
        elif not is_text(name):
            rejected.append(Rejected(ascii(name), NOT_TEXT))
        elif is_picture(name) and sentence:
            rows.append(Listed(name, name, None, sentence))
            used.add(sentence)
        elif is_picture(name):
            missing = "no line in metadata.jsonl names it" if tables else "no .txt file of its name beside it"
            rejected.append(Rejected(name, f"no sentence: {missing}"))
    rejected += [
        Rejected(name, "not a picture: its name's ending is not one of a picture")
        for name in sizes
        if name not in used and is_text(name) and not is_hidden(name) and not is_picture(name)
    ]
    kept = weighed(rows, sizes, rejected)
    return Listing(kept, tuple(rejected), listing_digest(entries, *texts), store)


def _parsed(text: str) -> object:
    """What a JSON text of unknown hands says; ValueError, in a few words, where it cannot be read."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as fault:
        raise ValueError(fault.msg) from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError:  # Python's own guard against numbers of thousands of digits
        raise ValueError("a number is too long") from None


def _metadata_rows(table: str, content: bytes, sizes: Mapping[str, int]) -> Iterable[Listed | Rejected]:
    folder = table.rpartition("/")[0]
    for number, line in enumerate(content.decode("utf-8-sig", "replace").splitlines(), 1):
        if not line.strip():
            continue
        place = f"{table}:{number}"
        try:
            record = _parsed(line)
        except ValueError as fault:
            yield Rejected(place, f"not JSON: {fault}")
            continue
        if not isinstance(record, dict) or not is_text(record.get("file_name")):
            yield Rejected(place, "no file_name in this line")
            continue
        name = f"{folder}/{record['file_name']}" if folder else record["file_name"]
        try:
            checked_name(name)
        except ConfigError:
            yield Rejected(place, f"file_name {record['file_name']!r} leaves its folder")
            continue
        if name not in sizes:
            yield Rejected(place, f"no such file: {name}")
        elif not is_text(record.get("text")):
            yield Rejected(place, "no text in this line")
        elif not is_text(id := str(record.get("image_id", name))):
            yield Rejected(place, "its image_id is not valid text")
        elif (group := record.get("group")) is not None and not is_text(group):
            yield Rejected(place, "its group is not valid text")
        else:
            yield Listed(id, name, record["text"], group=group or None)


def list_picture(store: Store, name: str, text: str | None = None) -> Listing:
    """One picture, its sentence given or in a `.txt` of the same name."""
    side = name.rpartition(".")[0] + ".txt"
    entries = [entry for entry in store.list(name.rpartition(".")[0]) if entry.name in (name, side)]
    if text is None and not any(entry.name == side for entry in entries):
        rejected = Rejected(name, f"no sentence: give one, or write it into {side}")
        return Listing((), (rejected,), listing_digest(entries), store)
    row, rejected = Listed(name, name, text, None if text is not None else side), []
    kept = weighed([row], {entry.name: entry.size for entry in entries}, rejected)
    return Listing(kept, tuple(rejected), listing_digest(entries, (text or "").encode()), store)


def load(store: Store, row: Listed) -> tuple[Example, list[Rejected]]:
    """Read a row's picture, sentence and masks; masks that are unusable are told and left out."""
    faults: list[Rejected] = []
    text = row.text
    if text is None:
        stored = store.get(row.text_file).decode("utf-8-sig", "replace")
        text = _caption(stored, row.text_file, faults) if row.text_file.endswith(".json") else stored.strip()
    image = store.get(row.picture)
    masks = {}
    for word, files in row.masks.items():
        for file in files:
            try:
                masks[word] = mask_png(aligned_mask(store.get(file.name), load_picture(image), file.threshold))
                break
            except ExampleError as fault:
                faults.append(Rejected(file.name, f"unusable mask: {fault}"))
    return Example(row.id, image, text, masks, group=row.group), faults


def _caption(stored: str, name: str, faults: list[Rejected]) -> str:
    """The `text` or `caption` of a JSON object; empty, and told, where there is none."""
    try:
        record = _parsed(stored)
    except ValueError:
        record = None
    found = record if isinstance(record, dict) else {}
    text = next((found[key] for key in ("text", "caption") if is_text(found.get(key))), "")
    if not text:
        faults.append(Rejected(name, "no text or caption in this JSON", repaired=True))
    return text.strip()
