"""A folder of audio files: what is in it, and who speaks by a pattern of the paths."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.manifests.rows import Row, Skipped

# Endings of what is read, and of audio that libsndfile does not read.
READ = ("wav", "flac", "ogg", "opus", "mp3", "aiff", "aif", "aifc", "au", "w64", "rf64", "caf", "sph", "nist")
NOT_READ = ("m4a", "mp4", "aac", "wma", "webm", "amr", "3gp", "mka", "mkv", "avi", "mov")
FIELDS = ("speaker", "session", "utterance", "gender")
CONVERT = "cannot be read here; ffmpeg -i IN -ac 1 -ar 16000 OUT.flac makes a file that can"


@dataclass
class Found:
    """Paths of audio below a folder, in C order, and the numbers of other files by ending."""

    files: list[str] = field(default_factory=list)
    others: Counter = field(default_factory=Counter)


def scan(root: Path, endings: list[str], skipped: Skipped) -> Found:
    """All files below `root` with one of the endings (lower case, without the dot).

    Links to files and folders are followed, each folder is entered once: what lies in `root` itself comes before what
    only a link leads to, and a link into a folder that was read already is left out (so no loop is endless).
    """
    wanted, found = frozenset(endings), Found()
    links: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()
    _walk(root, "", wanted, found, links, seen, skipped)
    while links:
        links.sort()
        again, links = links, []
        for path, below in again:
            try:
                _walk(Path(path), below, wanted, found, links, seen, skipped)
            except OSError as err:
                skipped.add(below, f"the folder cannot be read: {err.strerror}")
    found.files.sort()
    return found


def _walk(top: Path, below: str, wanted, found: Found, links: list, seen: set, skipped: Skipped) -> None:
    """`top` and what lies in it, links to folders aside (they go to `links`); `below` is its path from the root."""
    stack = [(str(top), below)]
    while stack:
        folder, name = stack.pop()
        try:
            status = os.stat(folder)
            key = status.st_dev, status.st_ino
            if key in seen:
                skipped.add(name or str(top), "a link to a folder that was read already")
                continue
            seen.add(key)
            with os.scandir(folder) as entries:
                for entry in entries:
                    _entry(
                        entry,
                        f"{name}/{entry.name}" if name else entry.name,
                        wanted,
                        found,
                        links,
                        stack,
                        skipped,
                    )
        except OSError as err:
            if folder == str(top) and not below:
                raise
            skipped.add(name, f"the folder cannot be read: {err.strerror}")


def _entry(
    entry: os.DirEntry, name: str, wanted, found: Found, links: list, stack: list, skipped: Skipped
) -> None:
    if entry.is_dir(follow_symlinks=False):
        stack.append((entry.path, name))
        return
    ending = os.path.splitext(entry.name)[1][1:].lower()
    if entry.is_symlink() and entry.is_dir():
        links.append((entry.path, name))
    elif ending in wanted:
        if entry.is_file():
            found.files.append(name)
        else:
            skipped.add(name, "a link to nowhere, a pipe or a device")
    elif ending in NOT_READ:
        skipped.add(name, CONVERT)
    else:
        found.others[ending] += 1


def pattern_of(text: str) -> re.Pattern:
    """A pattern such as `{speaker}/{session}/{utterance}.wav` as an expression for a whole path below the folder.

    A field takes a part of the path without `/`; `*` takes such a part without a name, `**` any path. Where the last
    part has no dot the ending is free. A field that is there twice must have the same value. UserError: another field.
    """
    out, seen = "", set()
    for piece in re.split(r"(\{[^{}]*\}|\*\*|\*)", text):
        name = piece[1:-1]
        if piece in ("*", "**"):
            out += "[^/]*" if piece == "*" else ".*"
        elif piece[:1] == "{" and piece[-1:] == "}":
            if name not in FIELDS:
                hint = "the fields are " + ", ".join(f"{{{f}}}" for f in FIELDS) + "; * is any part"
                raise UserError(f"the pattern {text[:80]!a} has the field {piece[:40]!a}", hint=hint)
            out += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)"
            seen.add(name)
        else:
            out += re.escape(piece)
    if "." not in text.rpartition("/")[2]:
        out += r"\.[^/.]+"
    return re.compile(out)


def expression(text: str) -> re.Pattern:
    """A regular expression of the user with named groups. UserError: it is none, or names no field."""
    hint = "name the parts as in (?P<speaker>id[0-9]+)/(?P<session>[^/]+)/.*"
    try:
        found = re.compile(text)
    except (re.error, OverflowError, RecursionError) as err:
        raise UserError(f"is not a regular expression: {text[:80]!a} ({err})", hint=hint) from None
    if not set(found.groupindex) & set(FIELDS):
        raise UserError(f"the expression {text[:80]!a} has none of the fields {', '.join(FIELDS)}", hint=hint)
    return found


def rows(root: Path, files: list[str], pattern: re.Pattern | None, skipped: Skipped) -> Iterator[Row]:
    """A row a file; one that the pattern does not fit goes to `skipped`. An utterance's name is its path without the
    ending, with it where two files differ in that alone."""
    top = os.path.abspath(root)
    all_stems = [os.path.splitext(name)[0] for name in files]
    stems, known = Counter(all_stems), set(files)
    for name, stem in zip(files, all_stems):
        held: dict[str, str] = {}
        if pattern:
            match = pattern.fullmatch(name)
            if not match:
                skipped.add(name, "the path does not fit the pattern")
                continue
            held = {k: v for k, v in match.groupdict().items() if v and k in FIELDS}
        yield Row(
            os.path.join(top, name),
            utt=stem if stems[stem] == 1 and stem not in known else name,
            speaker=held.get("speaker", ""),
            session=held.get("session", ""),
            gender=held.get("gender", ""),
            source=name,
        )
