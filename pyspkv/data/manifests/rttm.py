"""Read RTTM, NIST's Rich Transcription format: who speaks when in recordings."""

from collections.abc import Iterator
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.manifests.folder import READ
from pyspkv.data.manifests.lines import text_lines
from pyspkv.data.manifests.rows import Row, Skipped, absolute
from pyspkv.data.tables import plain_number, read_table

MOST_SECONDS = 1e9
_RULE = "the line must be `SPEAKER recording channel start duration <NA> <NA> speaker ...`"
# Types of lines in the format other than SPEAKER; they are skipped.
_TYPES = frozenset(
    "SPKR-INFO SEGMENT LEXEME NON-LEX NON-SPEECH FILLER EDIT IP SU CB A/P NOSCORE NO_RT_METADATA".split()  # noqa: SIM905
)


def turns(file: Path) -> Iterator[tuple[int, str, str, float, float, str]]:
    """Yield (line, recording, channel, start, end, speaker) of each SPEAKER line; times in s.

    UserError if malformed.
    """
    for line, raw in text_lines(file):
        parts = raw.split()
        if not parts or parts[0].startswith(";;") or parts[0] in _TYPES:
            continue
        start, length = (plain_number(p) for p in parts[3:5]) if len(parts) >= 8 else (-1.0, -1.0)
        if parts[0] != "SPEAKER" or not 0 <= start <= MOST_SECONDS or not 0 <= length <= MOST_SECONDS:
            raise UserError(_RULE, file=file, line=line)
        yield line, parts[1], parts[2], start, round(start + length, 9), parts[7]


def recordings_in(folder: Path) -> dict[str, str]:
    """Name without extension -> path of each audio file in a folder.

    UserError when two have the same name.
    """
    if not folder.is_dir():
        raise UserError("is not a folder", file=folder, hint="give the folder of the recordings")
    out: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix[1:].lower() in READ and path.is_file():
            if path.stem in out:
                rule = f"{path.stem} is the name of two recordings"
                raise UserError(rule, file=folder, hint="give --wav-scp, a wav.scp with one of them")
            out[path.stem] = absolute(path.name, folder)
    return out


def recordings_of(scp: Path) -> dict[str, str]:
    """Recording -> path or command of a wav.scp. As in Kaldi, relative paths start at the current folder."""
    return {r: p if p.endswith("|") else absolute(p, Path()) for r, p in read_table(scp, "entry").items()}


def rows(files: list[Path], audio: dict[str, str], per_recording: bool, skipped: Skipped) -> Iterator[Row]:
    """Yield a Row for each turn.

    per_recording: speakers of different recordings are different speakers, even if their names are the same.
    Turns go to `skipped` when their recording has no audio or has turns in several channels (channels are
    averaged when audio is read), when their length is 0, or when they are repeated.
    """
    found = [(file, *turn) for file in files for turn in turns(file)]
    channels: dict[str, set[str]] = {}
    for _, _, recording, channel, *_ in found:
        channels.setdefault(recording, set()).add(channel)
    seen = set()
    for file, line, recording, _, start, end, speaker in found:
        name = f"{file}:{line} {recording} {start:g} {end:g}"
        if recording not in audio:
            skipped.add(name, f"no audio of the recording: {recording}")
        elif len(channels[recording]) > 1:
            skipped.add(name, "the recording has turns in several channels, which are averaged here")
        elif end <= start:
            skipped.add(name, "a turn of 0 s")
        elif (recording, start, end, speaker) in seen:
            skipped.add(name, "the turn is repeated")
        else:
            seen.add((recording, start, end, speaker))
            yield Row(
                audio[recording],
                utt=f"{recording}-{speaker}-{round(100 * start):07d}-{round(100 * end):07d}",
                speaker=f"{recording}-{speaker}" if per_recording else speaker,
                session=recording,
                recording=recording,
                start=start,
                end=end,
                line=line,
            )
