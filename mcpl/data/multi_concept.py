"""The layout of the paper's authors' Multi-Concept-Dataset, as untidy as it was published.

    <concept>_<concept>[_<how many>]/     a group; its name says the concepts, not always all of them
        unmasked/[group/]NAME.jpg         the pictures; where NAME has spaces it is the sentence
        masked_<concept>/[group/]NAME     the object on black
        masked_<concept>_binary/...       a grey mask, preferred

Folder names are misspelt or wrong now and then, groups lie inside groups, files are empty or doubled: each case is
told with its reason, and none stops the import.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mcpl.data.listing import (
    NOT_TEXT,
    Listed,
    Listing,
    MaskFile,
    Rejected,
    is_hidden,
    is_picture,
    is_text,
    listing_digest,
    weighed,
)
from mcpl.data.pictures import BINARY_THRESHOLD, MAX_BYTES, OBJECT_THRESHOLD
from mcpl.data.storage import Entry, Store
from mcpl.errors import ExampleError

Masks = dict[str, list[MaskFile]]
"""picture's path below its folder, without suffix -> mask files, the preferred one first"""


@dataclass
class _Group:
    """One folder that holds `unmasked`."""

    folder: str
    name: str
    pictures: dict[str, Entry] = field(default_factory=dict)
    """path below `unmasked`, without suffix -> file"""
    masks: dict[str, Masks] = field(default_factory=dict)
    """the mask folder's word -> its masks"""


def list_multi_concept(store: Store, name: str | None = None) -> Listing:
    """Every picture with its sentence and masks. Reads only pictures of equal size, to find the doubled ones."""
    entries = store.list()
    rejected: list[Rejected] = []
    groups = _groups(store, entries, rejected)
    rows: list[Listed] = []
    for group in groups:
        if any(group.folder.startswith(f"{other.folder}/") for other in groups):
            rejected.append(Rejected(group.folder, "group inside another group", repaired=True))
        rows += _rows(store, group, rejected)
    sizes = {entry.name: entry.size for entry in entries}
    kept = weighed(rows, sizes, rejected)
    return Listing(kept, tuple(rejected), listing_digest(entries), store)


def _groups(store: Store, entries: Sequence[Entry], rejected: list[Rejected]) -> list[_Group]:
    """Sort every file into its group, or say why it belongs to none."""
    groups: dict[str, _Group] = {}
    for entry in entries:
        *folders, base = entry.name.split("/")
        kinds = [i for i, part in enumerate(folders) if part == "unmasked" or part.startswith("masked_")]
        if is_hidden(entry.name):
            rejected.append(Rejected(entry.name, "hidden file"))
        elif not is_text(entry.name):
            rejected.append(Rejected(ascii(entry.name), NOT_TEXT))
        elif not is_picture(entry.name):
            rejected.append(Rejected(entry.name, "not a picture: its name's ending is not one of a picture"))
        elif entry.size == 0:
            rejected.append(Rejected(entry.name, "empty file"))
        elif base.startswith("grid_"):
            rejected.append(Rejected(entry.name, "mosaic of other pictures"))
        elif not kinds:
            rejected.append(Rejected(entry.name, "picture outside the unmasked and masked folders"))
        else:
            folder = "/".join(folders[: kinds[0]])
            name = folder.rpartition("/")[2] or store.uri.rpartition("/")[2]
            group = groups.setdefault(folder, _Group(folder, name))
            stem = "/".join([*folders[kinds[0] + 1 :], base.rpartition(".")[0]])
            kind = folders[kinds[0]]
            if kind == "unmasked":
                group.pictures[stem] = entry
            else:
                word, binary = kind.removeprefix("masked_").removesuffix("_binary"), kind.endswith("_binary")
                files = group.masks.setdefault(word, {}).setdefault(stem, [])
                threshold = BINARY_THRESHOLD if binary else OBJECT_THRESHOLD
                files.insert(0 if binary else len(files), MaskFile(entry.name, threshold))
    return list(groups.values())


def _rows(store: Store, group: _Group, rejected: list[Rejected]) -> Iterator[Listed]:
    concepts = _concepts(group, rejected)
    masks = {word: _aligned(group, folder, rejected) for word, folder in concepts.items() if folder}
    first_of: dict[str, str] = {}
    doubles = _doubles(store, group)
    found: dict[str, dict[str, tuple[MaskFile, ...]]] = {}
    for stem, entry in group.pictures.items():
        own = {word: tuple(files[stem]) for word, files in masks.items() if stem in files}
        kept = first_of.setdefault(doubles.get(stem, stem), stem)
        if kept == stem:
            found[stem] = own
            continue
        rejected.append(Rejected(entry.name, f"the same bytes as another picture: {group.pictures[kept].name}"))
        for word, files in own.items():
            found[kept].setdefault(word, files)
    for stem, own in found.items():
        entry = group.pictures[stem]
        id = "/".join(part for part in (group.folder, stem) if part)
        try:
            text = _sentence(stem.rpartition("/")[2], list(concepts), entry.name, rejected)
        except ExampleError as fault:
            rejected.append(Rejected(id, str(fault)))
            continue
        yield Listed(id, entry.name, text, masks=own)


def _concepts(group: _Group, rejected: list[Rejected]) -> dict[str, str | None]:
    """Concept -> the word of its mask folder, or None where it has none."""
    named = [part.lower() for part in group.name.split("_") if part]
    count = int(named.pop()) if named and named[-1].isdigit() else None
    spare = sorted(word for word in group.masks if word.lower() not in named)
    if group.masks and len(spare) == len(group.masks):  # the folder's name says something else altogether
        return {word.lower(): word for word in spare}
    concepts: dict[str, str | None] = {
        word: next((m for m in group.masks if m.lower() == word), None) for word in dict.fromkeys(named)
    }

    def read_as(folder: str, word: str, fault: str) -> None:
        concepts[word] = folder
        spare.remove(folder)
        place = f"{group.folder}/masked_{folder}".lstrip("/")
        rejected.append(Rejected(place, f"{fault}: read as {word!r}", repaired=True))

    def lacking() -> list[str]:
        return [word for word, folder in concepts.items() if folder is None]

    for folder in list(spare):
        if close := difflib.get_close_matches(folder.lower(), lacking(), 1, cutoff=0.8):
            read_as(folder, close[0], "misspelt mask folder")
    while spare and count and len(concepts) < count:
        read_as(spare[0], spare[0].lower(), "a concept that the group's name leaves out")
    if len(spare) == 1 and len(lacking()) == 1:
        read_as(spare[0], lacking()[0], "misnamed mask folder, the only one left for the only concept left")
    for folder in spare:
        rejected.append(Rejected(f"{group.folder}/masked_{folder}".lstrip("/"), "masks of no concept of the group"))
    for word in lacking() if group.masks else ():
        rejected.append(Rejected(group.folder, f"no mask folder for a concept: {word!r}", repaired=True))
    return concepts


def _aligned(group: _Group, folder: str, rejected: list[Rejected]) -> Masks:
    """A folder's masks under the paths of the pictures they belong to.

    A mask belongs to the picture of its own path. One without such a picture was put in another sub-folder: it
    belongs to the picture of its base name, where exactly one such picture is left without a mask.
    """
    masks = group.masks[folder]
    aligned = {stem: files for stem, files in masks.items() if stem in group.pictures}
    free = Counter(stem.rpartition("/")[2] for stem in group.pictures if stem not in aligned)
    for stem, files in masks.items():
        if stem in aligned:
            continue
        base = stem.rpartition("/")[2]
        homes = [p for p in group.pictures if p not in masks and p.rpartition("/")[2] == base]
        if free[base] == 1 and homes and homes[0] not in aligned:
            aligned[homes[0]] = files
            moved = f"mask in another sub-folder than its picture: {group.pictures[homes[0]].name}"
            rejected.append(Rejected(files[0].name, moved, repaired=True))
        else:
            rejected += [Rejected(file.name, "mask of no picture") for file in files]
    return aligned


def _doubles(store: Store, group: _Group) -> dict[str, str]:
    """Path -> content hash, for the pictures whose size is not their own alone."""
    sizes = Counter(entry.size for entry in group.pictures.values())
    return {
        stem: hashlib.sha256(store.get(entry.name)).hexdigest()
        for stem, entry in group.pictures.items()
        if sizes[entry.size] > 1 and entry.size <= MAX_BYTES
    }


def _sentence(base: str, concepts: Sequence[str], place: str, rejected: list[Rejected]) -> str:
    """The file name where it is a sentence, else a template; concepts stand in angle brackets."""
    template = "a photo of " + " and ".join(f"<{word}>" for word in concepts)
    if not any(character.isspace() for character in base.strip()):
        return template
    from mcpl.prompts import mark

    text, found = mark(base.strip(), concepts)
    missing = [word for word in concepts if word not in found]
    if missing:
        rejected.append(Rejected(place, f"the sentence lacks a concept: {', '.join(missing)}", repaired=True))
    return text if found else template
