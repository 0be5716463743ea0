"""Find the audio files in a folder, and the speakers by a pattern of their paths."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.manifests.rows import Row, Skipped

# File name extensions: those that can be read, and those of audio that libsndfile cannot read.
READ = ("wav", "flac", "ogg", "opus", "mp3", "aiff", "aif", "aifc", "au", "w64", "rf64", "caf", "sph", "nist")
NOT_READ = ("m4a", "mp4", "aac", "wma", "webm", "amr", "3gp", "mka", "mkv", "avi", "mov")
FIELDS = ("speaker", "session", "utterance", "gender")
CONVERT = "cannot be read here; ffmpeg -i IN -ac 1 -ar 16000 OUT.flac makes a file that can"


@dataclass
class Found:
    """Paths of the audio files below a folder, in C order, and counts of other files by extension."""

    files: list[str] = field(default_factory=list)
    others: Counter = field(default_factory=Counter)


def scan(root: Path, endings: list[str], skipped: Skipped) -> Found:
    """Find all files below `root` with one of the endings (lower case, without the dot).

    Links to files and folders are followed, but every folder is read only once, so loops end. Folders in
    `root` itself are read before those that only a link leads to; a link to a folder that was already read is
    skipped.
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
    """Read folder `top`, whose path from the root is `below`; collect links to folders in `links`."""
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
    """Turn a pattern such as `{speaker}/{session}/{utterance}.wav` into a regular expression for paths below
    the folder.

    A field matches part of a path without `/`; `*` does the same without a name, and `**` matches any path.
    If the last part has no dot, any extension is allowed. A field that occurs twice must have the same value
    both times. UserError for an unknown field.
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
    """Compile the user's regular expression with named groups.

    UserError when it is invalid or names no field.
    """
    hint = "name the parts as in (?P<speaker>id[0-9]+)/(?P<session>[^/]+)/.*"
    try:
        found = re.compile(text)
    except (re.error, OverflowError, RecursionError) as err:
        raise UserError(f"is not a regular expression: {text[:80]!a} ({err})", hint=hint) from None
    if not set(found.groupindex) & set(FIELDS):
        raise UserError(f"the expression {text[:80]!a} has none of the fields {', '.join(FIELDS)}", hint=hint)
    return found


def rows(root: Path, files: list[str], pattern: re.Pattern | None, skipped: Skipped) -> Iterator[Row]:
    """Yield a Row for each file; a file that the pattern does not match goes to `skipped`.

    An utterance is named after its path without extension, or with it if two files differ only in the
    extension.
    """
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
