"""Read entries of wav.scp as 16 kHz mono samples, decoding only the crop that is needed.

All audio is treated in one way, so a crop has the same samples wherever it is cut:
- Channels are averaged. `channel=k` takes one channel instead, for multi-channel impulse responses.
- Any sample rate is resampled to 16 kHz by soxr (HQ). A crop is decoded with a margin of `_MARGIN` input
  samples on both sides, wider than soxr's filter, and from a point where an input and an output sample
  coincide. So it equals the slice of the whole recording resampled at once (measured difference < 1e-6).
- For some formats a seek does not give the samples of the whole recording (Ogg, MP3, codecs that cannot
  seek). There decoding starts before the crop or at the start of the recording (`_entry_point`).
- An utterance in `segments` is samples [round(start * 16000), round(end * 16000)) of its resampled recording.
  An end up to 0.5 s after the recording's end is cut there (Kaldi's rule); an end below 0 means the
  recording's end.
- Samples are clipped to [-1, 1], because codecs overshoot a little. Float files with a sample above
  `MAX_PEAK` = 2 in the part that is read have another scale (mostly that of 16-bit integers) and are refused.

libsndfile decodes all formats but FLAC, which dr_flac (by miniaudio) decodes in half the time. dr_flac leaves
out the samples of a damaged frame. So damage is found when a file is read to its end, while a crop may lack
up to a frame.

A file that is shorter than its header promises is refused ("is cut short"): WAV, W64, RF64, AIFF, AU, CAF,
SPHERE and Ogg when they are opened, FLAC and MP3 when they are read to their end. A file whose header does
not know the length (an encoder wrote into a pipe, a recorder was switched off) is read to its end.
"""

import math
import os
import re
import stat
import subprocess
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

from pyspkv.audio import silence
from pyspkv.audio.headers import HEAD, promise
from pyspkv.base.atomic import command_line
from pyspkv.base.errors import UserError
from pyspkv.fast.flac import Flac

SAMPLE_RATE = 16000
MAX_OVERSHOOT = 0.5  # seconds a segment may end past its recording (extract-segments --max-overshoot)
MAX_PEAK = 2.0  # largest magnitude accepted in float files
LEAST_SECONDS = 0.01  # shortest signal: one period of a low voice
HELD_MB = 512  # MiB for recordings that are costly to open again, see `_Held`
_MARGIN = 256  # input samples at rates up to 16 kHz, more in proportion above
_ARK = re.compile(r"(.+):(\d{1,18})(\[.*\])?")
_RATES = range(100, 10_000_001)  # Hz
_MOST_SECONDS = 1e7  # 16 weeks: longest time that a table may give
_MOST_CACHE_MB = 2**30  # a PiB
_FETCH = "copy it again, or remove it"
_STEP = 2.0**-15  # quantization step of 16-bit samples


class AudioError(Exception):
    """Why an entry cannot be read, and which table is wrong. Callers add the utterance."""

    def __init__(self, message: str, hint: str | None = None, table: str = "wav.scp"):
        super().__init__(message)
        self.hint, self.table = hint, table


class _SeekError(Exception):
    """A seek failed, so the recording has to be read from its start."""


class _Decoded:
    """A decoded recording, float32 [frames] or [frames, channels]; `_decode` reads it like a file."""

    def __init__(self, f, name: str):
        self.samplerate, self.channels, self.subtype = f.samplerate, f.channels, f.subtype
        self._x = _frames(f, name, f.subtype, 0, f.frames, from_start=True)
        self.frames, self._at = f.frames, 0

    def seekable(self) -> bool:
        return True

    def seek(self, frame: int) -> None:
        self._at = frame

    def read(self, frames: int, dtype: str = "float32") -> np.ndarray:
        return self._x[self._at : self._at + frames].copy()

    def __enter__(self) -> "_Decoded":
        self._at = 0
        return self

    def __exit__(self, *_) -> None:
        pass


class _Patched:
    """File object for soundfile over `peek`, with some bytes replaced.

    Seeking never raises, whatever a header says.
    """

    def __init__(self, peek: Callable[[int, int], bytes], size: int, patch: tuple[tuple[int, bytes], ...]):
        self._peek, self._size, self._patch, self._at = peek, size, patch, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> None:
        self._at = min(max(0, offset + (0, self._at, self._size)[whence]), 1 << 62)

    def tell(self) -> int:
        return self._at

    def read(self, number: int) -> bytes:
        data, start = self._peek(self._at, number), self._at
        self._at = start + len(data)
        for pos, raw in self._patch:
            if pos < self._at and start < pos + len(raw):
                patched = bytearray(data)
                for i, byte in enumerate(raw, pos - start):
                    if 0 <= i < len(patched):
                        patched[i] = byte
                data = bytes(patched)
        return data


class _Held(OrderedDict):
    """Cache of results that were costly: outputs of commands, recordings decoded from the start.

    The least recently used go first.
    """

    def __init__(self, budget: int):
        super().__init__()
        self.budget = budget  # bytes; the newest entry always stays, up to HELD_MB

    def __reduce__(self):  # without the content: a pickled reader starts with an empty cache
        return _Held, (self.budget,)

    def hold(self, entry: str, value, size: int) -> None:
        if size > HELD_MB << 20:
            return
        self[entry] = (value, size)
        while len(self) > 1 and sum(size for _, size in self.values()) > self.budget:
            self.popitem(last=False)

    def find(self, entry: str):
        if entry not in self:
            return None
        self.move_to_end(entry)
        return self[entry][0]


def _output_of(entry: str, allow_pipes: bool) -> bytes:
    """The output of a `command |` entry."""
    if not allow_pipes:
        raise AudioError(
            f"is a command ({entry[:60]}), and commands are not run by default",
            "allow it (`allow_pipes: true` in a config, else `--allow-pipes`), or write the audio to files first",
        )
    # The command is run exactly as the user wrote it, as Kaldi does; nothing is inserted.
    done = subprocess.run(["bash", "-c", entry[:-1]], stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode or not done.stdout:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise AudioError(f"command failed with exit code {done.returncode}: {entry[:60]} ({last[0][:200]})")
    return done.stdout


def _regular_size(path: str) -> int:
    """Size of a regular file in bytes.

    Anything else is refused unopened, because opening a fifo would block.
    """
    try:
        info = os.stat(path)
    except FileNotFoundError:
        raise AudioError(f"{path} does not exist") from None
    except OSError as err:
        raise AudioError(f"{path} cannot be read: {err.strerror}") from None
    if stat.S_ISDIR(info.st_mode):
        raise AudioError(f"{path} is a folder")
    if not stat.S_ISREG(info.st_mode):
        raise AudioError(
            f"{path} is a pipe, a socket or a device, not a regular file", "write the audio to a file"
        )
    if not info.st_size:
        raise AudioError(f"{path} is empty (0 bytes)")
    return info.st_size


def _open(entry: str, allow_pipes: bool, held: _Held | None = None):
    """Open an entry of wav.scp (`path`, `archive.ark:offset` or `command |`): SoundFile or Flac."""
    entry = entry.strip()
    if entry.endswith("|"):
        output = held.find(entry) if held is not None else None
        if output is None:
            output = _output_of(entry, allow_pipes)
            if held is not None:
                held.hold(entry, output, len(output))
        return _open_bytes(output, entry[:200])
    ark = _ARK.fullmatch(entry)
    if ark and os.path.exists(entry):
        ark = None
    if ark and ark[3]:
        raise AudioError(f"has a range {ark[3]}", "cut utterances with a `segments` file instead")
    path = ark[1] if ark else entry
    size = _regular_size(path)
    if not ark and path.lower().endswith(".flac"):
        try:
            flac = Flac(path)
            if flac.frames:
                return _checked(flac, path, size)
            flac.close()
        except OSError:
            pass  # libsndfile gives a better message
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        raise AudioError(f"{path} cannot be read: {err.strerror}") from None
    return _open_in_ark(fd, path, int(ark[2]), size) if ark else _open_file(fd, path, size)


def _open_file(fd: int, path: str, size: int):
    def peek(pos: int, number: int) -> bytes:
        return os.pread(fd, number, pos)

    found = promise(peek(0, HEAD), peek, size)
    plain = found is None or not found.patch and not found.prefix
    return _libsndfile(fd, path, size, found) if plain else _window(fd, 0, size, path)


def _window(fd: int, start: int, size: int, name: str):
    """Open the file that lies at bytes [start, start + size) of another file."""

    def peek(pos: int, number: int) -> bytes:
        return os.pread(fd, max(0, min(number, size - pos)), start + pos)

    source, found = _patched(peek, size)
    weakref.finalize(source, os.close, fd)
    return _libsndfile(source, name, size, found)


def _open_bytes(data: bytes, name: str):
    source, found = _patched(lambda pos, number: data[pos : pos + number], len(data))
    return _libsndfile(source, name, len(data), found)


def _patched(peek: Callable[[int, int], bytes], size: int):
    """(file object for soundfile over the `size` bytes that `peek` gives, promise of the header)."""
    found = promise(peek(0, HEAD), peek, size)
    if found is None or not found.prefix:
        return _Patched(peek, size, found.patch if found else ()), found
    prefix, moved = found.prefix, found.start - len(found.prefix)

    def behind(pos: int, number: int) -> bytes:
        if pos >= len(prefix):
            return peek(pos + moved, number)
        return prefix[pos : pos + number] + peek(found.start, max(0, pos + number - len(prefix)))

    return _Patched(behind, size - moved, ()), found


def _open_in_ark(fd: int, path: str, offset: int, size: int):
    """Open an entry of an ark: a WAV as Kaldi writes it, or a file as kaldiio packs it.

    kaldiio writes `AUDIO`, the number of length bytes (one byte), the length (little-endian), and the file.
    """
    name, size = f"{path}:{offset}", size - offset
    os.lseek(fd, offset, os.SEEK_SET)
    head = os.pread(fd, HEAD, offset)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        found = promise(head, lambda pos, number: os.pread(fd, number, offset + pos), size)
        if found is not None and found.size is not None and (found.patch or found.cut(size)):
            return _window(fd, offset, size, name)  # libsndfile alone would read on into the next entry
        if found is None or found.size is not None:
            return _libsndfile(fd, name, size, found)
        why, hint = "does not tell its length, and other entries may follow it", None
    elif head[:5] == b"AUDIO" and len(head) > 6 and 1 <= head[5] <= 8:
        start = 6 + head[5]
        length, there = int.from_bytes(head[6:start], "little"), size - start
        if length <= there:
            return _window(fd, offset + start, length, name)
        why, hint = f"is cut short: it promises {length} bytes, {there} are there", _FETCH
    else:
        name = f"at byte {offset} of {path}"
        why, hint = (
            "there is neither a WAV (RIFF) nor audio as kaldiio writes it (AUDIO)",
            "the offset must be that of the byte after the key",
        )
    os.close(fd)
    raise AudioError(f"{name} {why}", hint)


def _libsndfile(source, name: str, size: int, found):
    """Open a descriptor (at its position) or a file object of `size` bytes; `found` is its promise."""
    import soundfile

    cut = found is not None and found.cut(size)
    try:
        try:
            f = soundfile.SoundFile(source)  # it closes a descriptor that it cannot use
        except soundfile.LibsndfileError:
            if not isinstance(source, int) or not os.path.exists(name):
                raise
            f = soundfile.SoundFile(name)  # libsndfile recognizes some formats by the file name only
    # TypeError: a headerless .raw needs a rate
    except (soundfile.LibsndfileError, TypeError, OSError) as err:
        if cut:
            raise AudioError(f"{name} is cut short", _FETCH) from None
        reason = getattr(err, "error_string", "raw samples without a header")
        raise AudioError(f"{name} cannot be read by libsndfile ({reason})") from None
    if found is not None and found.chained:
        f.close()
        raise AudioError(f"{name} contains several Ogg streams in a row", "write each one to its own file")
    if not cut:
        return _checked(f, name, size, found)
    with f:
        seconds = f.frames / max(1, f.samplerate)
    rule = "its header promises more"
    if f.format == "OGG":
        rule = "its last page is incomplete"
    elif seconds:
        rule = f"its header promises {seconds * found.size / (size - found.start):.3f} s"
    raise AudioError(f"{name} is cut short: {rule}, {seconds:.3f} s are there", _FETCH)


def _checked(f, name: str, size: int, found=None):
    """Return an open file of `size` bytes if its header is plausible; else close it and raise AudioError."""
    try:
        if f.frames > 1 << 60:  # libsndfile's value for "unknown": an encoder wrote into a pipe
            hint = "encode it again from a file to a file, not through a pipe"
            raise AudioError(f"{name} does not tell its length", hint)
        if f.samplerate not in _RATES:
            raise AudioError(f"{name} has a rate of {f.samplerate} Hz; {_RATES[0]} to {_RATES[-1]} are read")
        if not 1 <= f.channels <= 1024:
            raise AudioError(f"{name} has {f.channels} channels")
        # At most so many samples can come from one byte: FLAC codes 65535 equal samples in ten bytes, Opus
        # 120 ms in two.
        if f.frames > size * 128:
            dense = isinstance(f, Flac) or f.format in ("FLAC", "OGG", "CAF")
            if not dense or f.frames > size * 8192:
                raise AudioError(f"{name} is damaged: its header promises {f.frames} samples in {size} bytes")
        if found is None and not isinstance(f, Flac) and f.format == "RAW" and not _raw_by_name(name):
            raise AudioError(f"{name} cannot be read by libsndfile (raw samples without a header)")
    except AudioError:
        f.close()
        raise
    return f


def _raw_by_name(path: str) -> bool:
    """True when a headerless file may be read by its name: .vox always, .gsm when its content looks like GSM
    06.10.

    GSM 06.10 frames have 33 bytes and start with 0xd. Dialogic's .vox has no mark at all.
    """
    kind = path.lower().rsplit(".", 1)[-1]
    if kind != "gsm":
        return kind.startswith("vox")
    with open(path, "rb") as file:
        head = file.read(33 * 8)
    return len(head) >= 33 and all(byte >> 4 == 0xD for byte in head[: len(head) // 33 * 33 : 33])


def _length16(frames: int, rate: int) -> int:
    """Length at 16 kHz of `frames` samples at `rate`: rounded to nearest, at least 1, as soxr does."""
    return max(1, (2 * frames * SAMPLE_RATE + rate) // (2 * rate)) if frames else 0


def _samples(seconds: float, table: str) -> int:
    """Seconds in a table as samples at 16 kHz. AudioError when no recording is that long."""
    if not seconds <= _MOST_SECONDS:
        raise AudioError(
            f"{seconds:g} s is not a length of a recording", "correct or remove the line", table=table
        )
    return round(seconds * SAMPLE_RATE)


def _entry_point(f, subtype: str, first: int) -> int:
    """The frame at which decoding must start, so that frame `first` equals that of the whole recording.

    Vorbis: libsndfile 1.2.2 seeks to a wrong place within the last page (libsndfile#885), which has at most
    255 packets of 4096 samples. MP3: a frame needs up to 511 bytes of the frames before it, which may be 47
    of the shortest frames of 576 samples. Opus: its speech coder may depend on more than the last 20 s.
    """
    if subtype.startswith("PCM") or isinstance(f, _Decoded):
        return first
    if _from_start(f, subtype):
        return 0
    if subtype == "VORBIS":
        return max(0, min(first, f.frames - (1 << 20)) - 8192)
    if subtype.startswith("MPEG"):
        return max(0, first - (1 << 15))
    return first


def _from_start(f, subtype: str) -> bool:
    """True when every crop needs decoding from the start of the recording."""
    return subtype == "OPUS" or not f.seekable()


def _frames(f, name: str, subtype: str, first: int, last: int, from_start: bool) -> np.ndarray:
    """Frames [first, last) of an open file, not resampled: float32 [n] or [n, channels]."""
    import soundfile

    begin = 0 if from_start else _entry_point(f, subtype, first)
    if begin:
        try:
            f.seek(begin)
        except soundfile.LibsndfileError:
            raise _SeekError from None
        except OSError as err:  # raised by Flac
            raise AudioError(str(err)) from None
    try:
        x = f.read(last - begin, dtype="float32")
    except soundfile.LibsndfileError as err:
        raise AudioError(f"{name} is damaged ({err.error_string})") from None
    if len(x) < last - begin:
        rate = f.samplerate
        raise AudioError(
            f"{name} is cut short or damaged: its header promises {f.frames / rate:.3f} s ({f.frames} samples), "
            f"it ends at {(begin + len(x)) / rate:.3f} s"
        )
    return x[first - begin :]


def _peak(x: np.ndarray, name: str) -> float:
    """Largest magnitude in a float file. AudioError when it is not finite or not on the scale of [-1, 1]."""
    peak = max(float(x.max()), -float(x.min()))  # NaN if any sample is NaN
    if not math.isfinite(peak):
        raise AudioError(f"{name} has non-finite samples (NaN or infinity)")
    if peak <= MAX_PEAK:
        return peak
    scale = next((2**bits for bits in (15, 23, 31) if 128 < peak <= 2**bits), math.ceil(peak))
    raise AudioError(
        f"{name} has float samples up to {peak:.6g}, outside [-1, 1]",
        f"divide them by {scale} and write the file again",
    )


def _decode(
    f, name: str, start: int, stop: int, channel: int | None, whole: bool = False, from_start: bool = False
) -> tuple[np.ndarray, str | None]:
    """Samples [start, stop) at 16 kHz of an open file, float32, and the result of `signal_problem`.

    `stop` must not exceed the file's length at 16 kHz. The problem is looked for only in a `whole` utterance.
    """
    rate, total = f.samplerate, f.frames
    first, last, offset = start, stop, 0
    if rate != SAMPLE_RATE:
        period = rate // math.gcd(rate, SAMPLE_RATE)
        margin = _MARGIN * max(1, -(-rate // SAMPLE_RATE))
        first = max(0, (start * rate // SAMPLE_RATE - margin) // period * period)
        last = min(total, -(-stop * rate // SAMPLE_RATE) + margin)
        offset = first * SAMPLE_RATE // rate
    subtype = f.subtype
    x = _frames(f, name, subtype, first, last, from_start)
    channels = None
    if f.channels > 1:
        if channel is not None and channel >= f.channels:
            raise AudioError(f"{name} has {f.channels} channels, but channel {channel} is needed")
        if channel is None:
            channels, x = x, x.mean(1, dtype=np.float32)
        else:
            x = np.ascontiguousarray(x[:, channel])
    exact = subtype in ("PCM_16", "PCM_24", "PCM_S8", "PCM_U8")  # integers: always finite and within [-1, 1]
    if subtype in ("FLOAT", "DOUBLE"):
        exact = _peak(x if channels is None else channels, name) <= 1
    elif not exact and not np.isfinite(x).all():
        raise AudioError(f"{name} has non-finite samples (NaN or infinity)")
    problem = signal_problem(x, channels, rate) if whole else None
    if rate != SAMPLE_RATE:
        import soxr

        x = soxr.resample(x, rate, SAMPLE_RATE)
        # At the recording's end soxr's rounding of an odd length may differ from ours by one sample.
        x = x[start - offset : stop - offset]
        if len(x) < stop - start:
            x = np.pad(x, (0, stop - start - len(x)))
        exact = False
    return (x if exact else np.clip(x, -1.0, 1.0)), problem


def signal_problem(
    wave: np.ndarray, channels: np.ndarray | None = None, rate: int = SAMPLE_RATE
) -> str | None:
    """Why a recording has no signal that could identify a speaker; None when it has one.

    A recording has no signal when it is shorter than `LEAST_SECONDS`; when all samples are equal, to within
    one 16-bit step up and down; or when its channels cancel out (the mean is 30 dB weaker than one of them).

    Args:
        wave: float32 [n] in [-1, 1] at `rate`, the mean of the channels.
        channels: float32 [n, C], the channels before averaging, if there are several.
        rate: samples per second.
    """
    if len(wave) < LEAST_SECONDS * rate:
        return (
            f"{len(wave)} sample{'s' * (len(wave) != 1)} at {rate} Hz, less than {LEAST_SECONDS * 1000:g} ms"
        )
    least, n = 2.5 * _STEP, len(wave)
    if channels is None and abs(float(wave[n // 2]) - float(wave[n // 3])) > least:
        return None  # a fast answer for most recordings
    if channels is not None and channels.shape[1] > 1:
        step = max(1, n // 256)
        if np.ptp(wave[::step]) > max(least, np.ptp(channels[::step]) / 8):
            return None
        own = float(channels.std(0).max())
        if own > _STEP and float(wave.std()) < own / 32:
            return "its channels cancel out in their mean"
    swing = float(wave.max() - wave.min())
    if swing > least:
        return None
    if not wave.any():
        return "digital silence"
    return f"a constant {wave[0]:.3g}" if swing == 0 else "silence, but for the last bit"


def _line_of_key(file: Path, key: str) -> int | None:
    """Number of the line in `file` whose first field is `key`; it is only looked up for an error message."""
    try:
        with open(file, encoding="utf-8", errors="replace") as f:
            return next((n for n, line in enumerate(f, 1) if line.split(None, 1)[:1] == [key]), None)
    except OSError:
        return None


class AudioReader:
    """Samples of the utterances of a data directory, by row. A reader can be forked and pickled.

    Args:
        data: a `DataDir` (only path, utts, wav, segments and utt_tables are used).
        allow_pipes: run `command |` entries. Off by default, because a data directory may come from
            elsewhere.
        cache_mb: memory (MiB) for `preload()`; 0 reads everything from disk.
        channel: take this channel instead of the mean of all.

    With `segments`, a second cache of up to `HELD_MB` keeps recordings for which every crop would run a
    command or decode from the start. Without segments it keeps the last output of a command only.
    """

    def __init__(self, data, allow_pipes: bool = False, cache_mb: float = 0, channel: int | None = None):
        self.data, self.allow_pipes, self.cache_mb, self.channel = data, allow_pipes, cache_mb, channel
        # Length of the recording at its own rate; -1: unknown
        self._frames = np.full(len(data.utts), -1, np.int64)
        self._rate = np.zeros(len(data.utts), np.int32)
        self._table_rate = 0
        self.silent: dict[int, str] = {}  # row -> why it has no signal, for rows that were read completely
        self._held = _Held(HELD_MB << 20 if data.segments else 0)
        self._cache = np.empty(0, np.int16)
        # Start of each cached row in _cache, and the end of the last one
        self._cache_start = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return len(self.data.utts)

    def _fail(self, row: int, err: AudioError) -> NoReturn:
        utt = self.data.utts[row]
        path = self.data.path and Path(self.data.path)
        if not path or path.is_file():  # the utterances come from a log or a list of files, not a directory
            raise UserError(f"utterance {utt}: {err}", file=path, hint=err.hint) from None
        segments = self.data.segments
        key = segments[utt][0] if segments and err.table == "wav.scp" else utt
        file = path / err.table
        raise UserError(
            f"utterance {utt}: {err}", file=file, line=_line_of_key(file, key), hint=err.hint
        ) from None

    def _entry(self, row: int) -> str:
        utt = self.data.utts[row]
        return self.data.wav[self.data.segments[utt][0] if self.data.segments else utt]

    def _header(self, row: int, f) -> tuple[int, int]:
        """Remember length and rate of an open file; return its utterance as [first, last) at 16 kHz."""
        if not f.frames:
            raise AudioError("contains no samples")
        if self._table_rate and f.samplerate != self._table_rate and "utt2dur" not in self.data.utt_tables:
            raise AudioError(
                f"utt2num_samples is ambiguous: {f.samplerate} Hz here, first row {self._table_rate} Hz",
                "write utt2dur as well, or remove utt2num_samples",
            )
        self._frames[row], self._rate[row] = f.frames, f.samplerate
        return self._span(row)

    def _span(self, row: int) -> tuple[int, int]:
        total = _length16(int(self._frames[row]), int(self._rate[row]))
        if not self.data.segments:
            return 0, total
        _, start, end = self.data.segments[self.data.utts[row]]
        first = _samples(start, "segments")
        last = total if end < 0 else _samples(end, "segments")
        segment = f"segment {start:g}-{end:g} s" if end >= 0 else f"segment from {start:g} s to the end"
        if first >= total or last > total + MAX_OVERSHOOT * SAMPLE_RATE:
            raise AudioError(
                f"{segment} lies beyond its recording's end at {total / SAMPLE_RATE:.3f} s",
                command_line("utils/fix_data_dir.sh", "--check-audio", self.data.path),
                table="segments",
            )
        last = min(last, total)
        if first >= last:
            raise AudioError(f"{segment} contains no samples", table="segments")
        return first, last

    def _from_tables(self, row: int) -> int | None:
        """Length at 16 kHz according to the directory's tables; None when they do not say. Opens no file."""
        utt, tables = self.data.utts[row], self.data.utt_tables
        if self.data.segments:
            _, start, end = self.data.segments[utt]
            return None if end < 0 else _samples(end, "segments") - _samples(start, "segments")
        num, dur = tables.get("utt2num_samples", {}).get(utt), tables.get("utt2dur", {}).get(utt)
        if num is not None and len(num) > 15:
            raise AudioError(
                "no recording has that many samples", "correct or remove the line", "utt2num_samples"
            )
        if dur is not None:
            samples = _samples(float(dur), "utt2dur")
            # utt2num_samples counts at the file's own rate, as in Kaldi; count / duration gives that rate.
            if num is not None and abs(int(num) / float(dur) - SAMPLE_RATE) < 0.01 * SAMPLE_RATE:
                return int(num)
            return max(1, samples)
        if num is not None:
            if not self._table_rate:
                self._table_rate = self._probe(0)
            return _length16(int(num), self._table_rate)
        return None

    def _open(self, row: int):
        """Open the row's recording.

        With segments, one that always needs decoding from the start is decoded once.
        """
        entry = self._entry(row)
        held = self._held.find(entry)
        if isinstance(held, _Decoded):
            return held
        f = _open(entry, self.allow_pipes, self._held)
        if not self.data.segments or held is not None or not _from_start(f, f.subtype):
            return f
        size = f.frames * f.channels * 4
        if size > HELD_MB << 20:
            return f
        with f:
            decoded = _Decoded(f, entry[:200])
        self._held.hold(entry, decoded, size)
        return decoded

    def _probe(self, row: int) -> int:
        if self._frames[row] < 0:
            try:
                with self._open(row) as f:
                    self._header(row, f)
            except AudioError as err:
                self._fail(row, err)
        return int(self._rate[row])

    def num_samples(self, row: int) -> int:
        """Length of the row's utterance in samples at 16 kHz, without decoding it.

        The length comes from segments, utt2num_samples or utt2dur, and may differ a little from what `read`
        returns. Without them the audio's header is read, once (a `command |` is run). The answer never
        depends on what was read before, because crops are drawn by it and must not depend on the history of
        this process.

        Raises UserError when the length cannot be found.
        """
        try:
            known = self._from_tables(row)
        except AudioError as err:
            self._fail(row, err)
        if known is not None:
            return known
        if row < len(self._cache_start) - 1:
            return int(self._cache_start[row + 1] - self._cache_start[row])
        self._probe(row)
        try:
            first, last = self._span(row)
        except AudioError as err:
            self._fail(row, err)
        return last - first

    def read(self, row: int, start: int = 0, num: int | None = None, back: bool = False) -> np.ndarray:
        """Samples [start, start + num) of an utterance, float32 [n] in [-1, 1], mono, 16 kHz.

        `num=None` reads to the end. The result is shorter than `num` only at the end of the utterance. With
        `back`, a crop that passes the end is moved back (tables may promise more than the audio holds).
        Raises UserError with utterance, file and line when the audio cannot be read or has no sample `start`.
        """
        if row < len(self._cache_start) - 1:
            first, last = int(self._cache_start[row]), int(self._cache_start[row + 1])
            start, stop = self._stretch(row, first, last, start, num, back)
            part = self._cache[start:stop].astype(np.float32)  # always a copy
            return part * np.float32(1 / 32768) if self._cache.dtype == np.int16 else part
        try:
            try:
                return self._read(row, start, num, back)
            except _SeekError:
                return self._read(row, start, num, back, from_start=True)
        except AudioError as err:
            self._fail(row, err)
        except MemoryError:
            self._fail(row, AudioError("needs more memory than this machine has"))

    def _read(
        self, row: int, start: int, num: int | None, back: bool, from_start: bool = False
    ) -> np.ndarray:
        with self._open(row) as f:
            first, last = self._header(row, f)
            start, stop = self._stretch(row, first, last, start, num, back)
            whole = (start, stop) == (first, last)
            name = self._entry(row)[:200]
            wave, problem = _decode(f, name, start, stop, self.channel, whole, from_start)
        if problem:
            self.silent[row] = problem
        return wave

    def silence_note(self, most: int = 10) -> str:
        """One line that lists the first `most` utterances in `silent`, each with its reason; "" for none."""
        return silence.note({self.data.utts[row]: self.silent[row] for row in sorted(self.silent)}, most)

    def _stretch(self, row: int, first: int, last: int, start: int, num: int | None, back: bool):
        """The crop as [start, stop) of the recording, where the utterance is [first, last)."""
        length = last - first
        if back and num is not None:
            start = min(start, max(0, length - num))
        if not 0 <= start < length:
            raise UserError(
                f"utterance {self.data.utts[row]}: sample {start} does not exist; there are {length} at 16 kHz",
                file=self.data.path,
                hint="remove utt2dur and utt2num_samples if they disagree with the audio",
            )
        return first + start, last if num is None else min(last, first + start + num)

    def preload(self) -> int:
        """Decode the first rows that fit into `cache_mb` MiB into memory; return their number.

        Call it before workers are forked, so that they share the memory. A cached row reads the same as from
        disk: 16-bit audio at 16 kHz is stored as int16, everything else as float32 (rounding would fill the
        empty upper band of telephone speech with noise). Prints the amount of memory first, and a progress
        bar on a terminal.

        Raises UserError when the memory is not available or a file cannot be read.
        """
        if self.cache_mb <= 0 or not len(self):
            return 0
        if not self.cache_mb <= _MOST_CACHE_MB:
            raise UserError(
                f"cache_mb: {self.cache_mb:g} is not an amount of memory in MiB",
                hint="0 reads everything from disk",
            )
        from tqdm import tqdm

        ends = np.cumsum([self.num_samples(row) for row in range(len(self))])
        starts = np.zeros(len(self) + 1, np.int64)

        def empty(kind: type) -> np.ndarray:
            size = np.dtype(kind).itemsize
            rows = int(np.searchsorted(ends, int(self.cache_mb * 2**20) // size, side="right"))
            total = int(ends[rows - 1]) if rows else 0
            mib = f"{total * size / 2**20:.0f} of {self.cache_mb:g} MiB"
            print(f"audio cache: {rows} of {len(self)} utterances, {mib}", flush=True)
            try:
                return np.empty(total, kind)
            except MemoryError:
                raise UserError(
                    f"the audio cache needs more memory than this machine has ({mib})",
                    hint="set a lower cache_mb",
                ) from None

        cache, rows = empty(np.int16 if _is_16_bit(self.read(0)) else np.float32), 0
        for row in tqdm(range(len(self)), desc="read audio", unit="utt", disable=None, leave=False):
            if ends[row] > len(cache):
                break
            x = self.read(row)
            if cache.dtype == np.int16 and not _is_16_bit(x):
                held, cache = cache[: starts[row]], empty(np.float32)
                rows = int(np.searchsorted(starts[: row + 1], len(cache), side="right")) - 1
                cache[: starts[rows]] = held[: starts[rows]] * np.float32(1 / 32768)
                if rows < row:
                    break
            first, last = starts[row], starts[row] + len(x)
            if last > len(cache):  # the audio is longer than utt2dur says
                break
            cache[first:last] = x if cache.dtype == np.float32 else x * np.float32(32768)
            starts[row + 1], rows = last, row + 1
        self._cache, self._cache_start = cache, starts[: rows + 1]
        return rows


def _is_16_bit(x: np.ndarray) -> bool:
    """True when int16 can hold the samples, float32 [n], exactly."""
    scaled = x * np.float32(32768)
    return bool(np.array_equal(scaled, np.rint(scaled)) and scaled.max(initial=0) < 32768)
