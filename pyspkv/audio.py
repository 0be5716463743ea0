"""From a wav.scp entry to 16 kHz mono samples, decoding only the crop that is asked for.

The one treatment of every file, so that a crop is the same samples wherever it is cut:
- channels are averaged (`channel=k` takes one instead, for multi-channel impulse responses);
- any sample rate is resampled to 16 kHz by soxr (HQ). A crop decodes a margin of `_MARGIN` input samples on
  both sides, wider than soxr's filter, from where an input and an output sample coincide, so it equals the
  slice of the whole recording resampled at once (measured difference < 1e-6);
- an utterance of `segments` is samples [round(start * 16000), round(end * 16000)) of its resampled recording;
  an end up to 0.5 s past the recording's end is cut there (Kaldi's rule);
- samples are clipped to [-1, 1].

libsndfile decodes, but FLAC files go through dr_flac (by miniaudio), which takes half the time. Of a damaged frame
dr_flac leaves the samples out, so a file read to its end is told to be damaged, while a crop may miss up to a frame.
"""

import io
import math
import os
import re
import subprocess
from pathlib import Path

import numpy as np

from pyspkv.errors import UserError

SAMPLE_RATE = 16000
MAX_OVERSHOOT = 0.5  # seconds a segment may end past its recording (extract-segments --max-overshoot)
_MARGIN = 256  # input samples at up to 16 kHz, in proportion above
_ARK = re.compile(r"(.+):(\d{1,18})(\[.*\])?")


class AudioError(Exception):
    """Why an entry cannot be read; the callers add whose entry it is."""

    def __init__(self, message: str, mend: str | None = None, of_segment: bool = False):
        super().__init__(message)
        self.mend, self.of_segment = mend, of_segment


class _Flac:
    """A FLAC file open in dr_flac, with what `_decode` uses of `soundfile.SoundFile`. OSError where it is none."""

    def __init__(self, path: str):
        import miniaudio

        self._lib, self._ffi, self.name = miniaudio.lib, miniaudio.ffi, path
        self._flac = self._lib.ma_dr_flac_open_file(os.fsencode(path), self._ffi.NULL)
        if not self._flac:
            raise OSError(f"{path} is no FLAC file")
        self.samplerate, self.channels = self._flac.sampleRate, self._flac.channels
        self.frames = self._flac.totalPCMFrameCount  # 0 where the header does not tell
        self.subtype = f"PCM_{self._flac.bitsPerSample}"

    def seek(self, frame: int) -> None:
        if not self._lib.ma_dr_flac_seek_to_pcm_frame(self._flac, frame):
            raise AudioError(f"{self.name} is damaged (no frame {frame})")

    def read(self, frames: int, dtype: str = "float32") -> np.ndarray:
        x = np.empty((frames, self.channels) if self.channels > 1 else frames, dtype)
        buffer = self._ffi.from_buffer("float[]", x)
        return x[: self._lib.ma_dr_flac_read_pcm_frames_f32(self._flac, frames, buffer)]

    def close(self) -> None:
        self._lib.ma_dr_flac_close(self._flac)

    def __enter__(self) -> "_Flac":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _open(entry: str, allow_pipes: bool):
    """A `soundfile.SoundFile` (or `_Flac`) of a wav.scp entry: `path`, `archive.ark:offset` or `command |`."""
    import soundfile

    entry = entry.strip()
    if entry.endswith("|"):
        if not allow_pipes:
            raise AudioError(
                f"is a command ({entry[:60]}), and commands are not run by default",
                "allow it (`allow_pipes: true` in a config, else `--allow-pipes`), or write the audio to files first",
            )
        # The user's own line, run as Kaldi would run it; nothing is put into it.
        done = subprocess.run(["bash", "-c", entry[:-1]], stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode or not done.stdout:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
            raise AudioError(
                f"command failed with exit code {done.returncode}: {entry[:60]} ({last[0][:200]})"
            )
        source = io.BytesIO(done.stdout)
    else:
        ark = None if os.path.exists(entry) else _ARK.fullmatch(entry)
        if ark and ark[3]:
            raise AudioError(f"has a range {ark[3]}", "cut utterances with a `segments` file instead")
        path = ark[1] if ark else entry
        try:
            if not ark and os.stat(path).st_size == 0:
                raise AudioError(f"{path} is empty (0 bytes)")
            source = path
            if ark:
                source = os.open(path, os.O_RDONLY)
                os.lseek(source, int(ark[2]), os.SEEK_SET)
        except FileNotFoundError:
            raise AudioError(f"{path} does not exist") from None
        except OSError as err:
            raise AudioError(f"{path} cannot be read: {err.strerror}") from None
        if ark and os.pread(source, 4, int(ark[2])) not in (b"RIFF", b"RIFX", b"RF64"):
            os.close(source)
            mend = "point the offset behind the archive's key"
            raise AudioError(f"no WAV (RIFF) at byte {ark[2]} of {path}", mend)
        if not ark and path.lower().endswith(".flac"):
            try:
                flac = _Flac(path)
                if flac.frames:
                    return flac
                flac.close()
            except OSError:
                pass  # libsndfile says what it is
    try:
        f = soundfile.SoundFile(source)
        if f.frames > 1 << 60:  # libsndfile's "unknown": an encoder wrote into a pipe
            mend = "encode it anew from a file to a file, as by `ffmpeg -i OLD.flac NEW.flac`"
            raise AudioError(f"{entry[:200]} does not tell its length", mend)
        return f
    except (soundfile.LibsndfileError, TypeError, OSError) as err:  # TypeError: headerless .raw wants a rate
        if isinstance(source, str) and os.path.isdir(source):
            raise AudioError(f"{source} is a folder") from None
        reason = getattr(err, "error_string", "raw samples without a header")
        raise AudioError(f"{entry[:200]} is not audio that libsndfile reads ({reason})") from None


def _length16(frames: int, rate: int) -> int:
    """Samples at 16 kHz of `frames` samples at `rate`: rounded to nearest, at least one (as soxr)."""
    return max(1, (2 * frames * SAMPLE_RATE + rate) // (2 * rate)) if frames else 0


def _decode(f, start: int, stop: int, channel: int | None) -> np.ndarray:
    """Samples [start, stop) at 16 kHz of an open file, float32; stop <= the file's length at 16 kHz."""
    import soundfile

    rate, total = f.samplerate, f.frames
    first, last, offset = start, stop, 0
    if rate != SAMPLE_RATE:
        period = rate // math.gcd(rate, SAMPLE_RATE)
        margin = _MARGIN * max(1, -(-rate // SAMPLE_RATE))
        first = max(0, (start * rate // SAMPLE_RATE - margin) // period * period)
        last = min(total, -(-stop * rate // SAMPLE_RATE) + margin)
        offset = first * SAMPLE_RATE // rate
    try:
        if first:
            f.seek(first)
        x = f.read(last - first, dtype="float32")
    except soundfile.LibsndfileError as err:
        raise AudioError(f"{f.name} is damaged ({err.error_string})") from None
    if len(x) < last - first:
        raise AudioError(
            f"{f.name} is cut short or damaged: its header promises {total} samples, it ends at {first + len(x)}"
        )
    if f.channels > 1:
        if channel is not None and channel >= f.channels:
            raise AudioError(f"{f.name} has {f.channels} channels, channel {channel} is asked for")
        x = x.mean(1, dtype=np.float32) if channel is None else np.ascontiguousarray(x[:, channel])
    exact = f.subtype in ("PCM_16", "PCM_24", "PCM_S8", "PCM_U8")  # cannot leave [-1, 1] nor be NaN
    if not exact and not np.isfinite(x).all():
        raise AudioError(f"{f.name} has non-finite samples (NaN or infinity)")
    if rate != SAMPLE_RATE:
        import soxr

        x = soxr.resample(x, rate, SAMPLE_RATE)
        # At the recording's end soxr's rounding of an odd length may be one sample off ours.
        x = x[start - offset : stop - offset]
        if len(x) < stop - start:
            x = np.pad(x, (0, stop - start - len(x)))
        exact = False
    return x if exact else np.clip(x, -1.0, 1.0)


def _line_of(file: Path, key: str) -> int | None:
    """Line of `file` whose first field is `key`; looked up only when an error is about to be raised."""
    try:
        with open(file, encoding="utf-8", errors="replace") as f:
            return next((n for n, line in enumerate(f, 1) if line.split(None, 1)[:1] == [key]), None)
    except OSError:
        return None


class AudioReader:
    """Samples of a data directory's utterances, by row. Safe to fork and to pickle.

    Args:
        data: a `DataDir` (only path, utts, wav, segments and extra are used).
        allow_pipes: run `command |` entries. Off by default: a data directory may come from elsewhere.
        cache_mb: memory (MiB) for `preload()`; 0 reads everything from disk.
        channel: take this channel instead of the mean of all.
    """

    def __init__(self, data, allow_pipes: bool = False, cache_mb: float = 0, channel: int | None = None):
        self.data, self.allow_pipes, self.cache_mb, self.channel = data, allow_pipes, cache_mb, channel
        self._frames = np.full(len(data.utts), -1, np.int64)  # of the recording, at its own rate; -1 = unseen
        self._rate = np.zeros(len(data.utts), np.int32)
        self._table_rate = 0
        self._cache = np.empty(0, np.int16)
        self._cache_start = np.zeros(1, np.int64)  # rows 0 .. len-2 are in the cache

    def __len__(self) -> int:
        return len(self.data.utts)

    def _fail(self, row: int, err: AudioError):
        utt = self.data.utts[row]
        path = self.data.path and Path(self.data.path)
        if not path or path.is_file():  # no directory, but a log or files by name
            raise UserError(f"utterance {utt}: {err}", file=path, mend=err.mend) from None
        segments = self.data.segments
        key, name = (
            (utt, "segments") if err.of_segment else (segments[utt][0] if segments else utt, "wav.scp")
        )
        file = path / name
        raise UserError(
            f"utterance {utt}: {err}", file=file, line=_line_of(file, key), mend=err.mend
        ) from None

    def _entry(self, row: int) -> str:
        utt = self.data.utts[row]
        return self.data.wav[self.data.segments[utt][0] if self.data.segments else utt]

    def _header(self, row: int, f) -> tuple[int, int]:
        """Remember an open file's length and rate; the row's utterance in it as [first, last) at 16 kHz."""
        if not f.frames:
            raise AudioError("holds no samples")
        if self._table_rate and f.samplerate != self._table_rate and "utt2dur" not in self.data.extra:
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
        first = round(start * SAMPLE_RATE)
        last = round(end * SAMPLE_RATE)
        if first >= total or last > total + MAX_OVERSHOOT * SAMPLE_RATE:
            raise AudioError(
                f"segment {start:g}-{end:g} s lies beyond its recording's end at {total / SAMPLE_RATE:.3f} s",
                "correct or remove this line of segments (utils/fix_data_dir.sh removes it)",
                of_segment=True,
            )
        last = min(last, total)
        if first >= last:
            raise AudioError(f"segment {start:g}-{end:g} s holds no samples", of_segment=True)
        return first, last

    def _from_tables(self, row: int) -> int | None:
        """Length at 16 kHz by the directory's tables, without opening a file; None where they are silent."""
        utt, tables = self.data.utts[row], self.data.extra
        if self.data.segments:
            _, start, end = self.data.segments[utt]
            return round(end * SAMPLE_RATE) - round(start * SAMPLE_RATE)
        num, dur = tables.get("utt2num_samples", {}).get(utt), tables.get("utt2dur", {}).get(utt)
        if dur is not None:
            # Kaldi counts samples at the file's own rate, which the two together reveal.
            if num is not None and abs(int(num) / float(dur) - SAMPLE_RATE) < 0.01 * SAMPLE_RATE:
                return int(num)
            return max(1, round(float(dur) * SAMPLE_RATE))
        if num is not None:
            if not self._table_rate:
                self._table_rate = self._probe(0)
            return _length16(int(num), self._table_rate)
        return None

    def _probe(self, row: int) -> int:
        if self._frames[row] < 0:
            try:
                with _open(self._entry(row), self.allow_pipes) as f:
                    self._header(row, f)
            except AudioError as err:
                self._fail(row, err)
        return int(self._rate[row])

    def num_samples(self, row: int) -> int:
        """Samples of the row's utterance at 16 kHz, without decoding it.

        segments, utt2num_samples and utt2dur answer, as exact as they are (`read` gives what is there), else the
        audio's header, read once (a `command |` is run). What was read before changes no answer: crops drawn
        by it must not depend on what this process happens to have seen.
        """
        known = self._from_tables(row)
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

        `num=None` reads to the end. n < num only where the utterance ends earlier; with `back` a stretch that
        passes the end moves back to it (tables may promise more than the audio holds).
        Raises UserError naming utterance, file and line where there is nothing to read.
        """
        if row < len(self._cache_start) - 1:
            first, last = int(self._cache_start[row]), int(self._cache_start[row + 1])
            start, stop = self._stretch(row, first, last, start, num, back)
            part = self._cache[start:stop].astype(np.float32)  # a copy either way
            return part * np.float32(1 / 32768) if self._cache.dtype == np.int16 else part
        try:
            with _open(self._entry(row), self.allow_pipes) as f:
                first, last = self._header(row, f)
                start, stop = self._stretch(row, first, last, start, num, back)
                return _decode(f, start, stop, self.channel)
        except AudioError as err:
            self._fail(row, err)

    def _stretch(self, row: int, first: int, last: int, start: int, num: int | None, back: bool):
        """[start, stop) within the utterance's [first, last)."""
        length = last - first
        if back and num is not None:
            start = min(start, max(0, length - num))
        if not 0 <= start < length:
            raise UserError(
                f"utterance {self.data.utts[row]}: no sample {start}, it has {length} at 16 kHz",
                file=self.data.path,
                mend="where utt2dur or utt2num_samples disagree with the audio, remove them",
            )
        return first + start, last if num is None else min(last, first + start + num)

    def preload(self) -> int:
        """Decode the first rows that fit into `cache_mb` to one array; the number of rows held.

        Call it before workers are forked: they share the pages. A held row reads the same as from disk: int16 holds
        16-bit, 16 kHz audio, float32 the rest (rounding would fill the empty upper band of telephone speech with
        noise). Prints the memory first, a progress bar on a terminal.
        """
        if self.cache_mb <= 0 or not len(self):
            return 0
        from tqdm import tqdm

        ends = np.cumsum([self.num_samples(row) for row in range(len(self))])
        starts = np.zeros(len(self) + 1, np.int64)

        def empty(kind: type) -> np.ndarray:
            size = np.dtype(kind).itemsize
            rows = int(np.searchsorted(ends, int(self.cache_mb * 2**20) // size, side="right"))
            total = int(ends[rows - 1]) if rows else 0
            mib = f"{total * size / 2**20:.0f} of {self.cache_mb:g} MiB"
            print(f"audio cache: {rows} of {len(self)} utterances, {mib}", flush=True)
            return np.empty(total, kind)

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
            if last > len(cache):  # utt2dur was rounded down
                break
            cache[first:last] = x if cache.dtype == np.float32 else x * np.float32(32768)
            starts[row + 1], rows = last, row + 1
        self._cache, self._cache_start = cache, starts[: rows + 1]
        return rows


def _is_16_bit(x: np.ndarray) -> bool:
    """Whether int16 holds the samples float32 [n] as they are."""
    scaled = x * np.float32(32768)
    return bool(np.array_equal(scaled, np.rint(scaled)) and scaled.max(initial=0) < 32768)
