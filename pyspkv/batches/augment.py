"""Noise, babble, music, reverberation and speed for float32 crops at 16 kHz.

`draw` makes a `Profile` out of a generator, `apply` is a pure function of (samples, profile): two crops with
one profile share an augmentation. For runs that can be repeated, the caller makes the generator from what
names the crop: `np.random.default_rng((seed, epoch, row, view))`.
"""

import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from pyspkv.audio.reader import SAMPLE_RATE, AudioReader
from pyspkv.audio.rir import MAX_LENGTH, align, bank
from pyspkv.base.config import Config, NotNegative, Share, Span, in_order
from pyspkv.base.errors import UserError
from pyspkv.data.datadir import DataDir, read_table

_KINDS = ("noise", "babble", "music")
_FFT_CACHE = 64 * 2**20  # bytes of transformed impulse responses that a process keeps
_FFT_ROWS = 8  # crops transformed at once: scipy takes a third of the time for four rows side by side
log = logging.getLogger(__name__)


def _different(speeds: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(speeds)) < len(speeds):
        raise ValueError("a factor appears twice")
    return speeds


RT60 = Annotated[float, Field(ge=0.1, le=1.5)]
Distance = Annotated[float, Field(ge=0.1, le=5)]
Talkers = Annotated[int, Field(ge=1, le=1000)]


class AugmentConfig(Config):
    """Noise, babble, music, reverberation and speed. Lists are data directories or wav.scp files; "" is none. SNRs are
    in dB, uniform between the two ends."""

    prob: Share = Field(
        0.8,
        description="Probability that a crop is augmented (apart from speed). Lower it when clean test "
        "speech gets worse.",
    )
    reverb_weight: NotNegative = Field(1.0, description="Relative weight of reverberation alone.")
    additive_weight: NotNegative = Field(
        1.0,
        description="Relative weight of noise, babble or music alone. The three weights must not all be 0.",
    )
    both_weight: NotNegative = Field(
        1.0, description="Relative weight of reverberation followed by noise, babble or music."
    )
    noise_list: str = Field("", description="List of noises, for example MUSAN's noise part.")
    noise_snr: Span = Field((0.0, 15.0), description="SNR of noise in dB (Kaldi's recipes: 0 to 15).")
    babble_list: str = Field(
        "",
        description="Speech to make babble of, for example MUSAN's. `train`: other crops of the training "
        "data itself, when there is no other speech (a folder of that name is ./train).",
    )
    babble_snr: Span = Field((13.0, 20.0), description="SNR of babble in dB (Kaldi's recipes: 13 to 20).")
    babble_speakers: Annotated[tuple[Talkers, Talkers], AfterValidator(in_order)] = Field(
        (3, 8), description="Number of talkers in a babble: minimum and maximum (Kaldi's recipes: 3 to 7)."
    )
    babble_snr_each: bool = Field(
        False,
        description="Each talker of a babble has an SNR of its own in `babble_snr`, and then they are added "
        "up, as voxceleb_trainer does. Their sum is then about 7.5 dB louder. Off: the sum has that SNR.",
    )
    music_list: str = Field("", description="List of music, for example MUSAN's.")
    music_snr: Span = Field((5.0, 15.0), description="SNR of music in dB (Kaldi's recipes: 5 to 15).")
    babble_music: bool = Field(
        False,
        description="Babble and music together, each at its SNR, are one more kind of addition. Needs both "
        "lists.",
    )
    rir_list: str = Field(
        "",
        description="Recorded or simulated impulse responses. Without a list, a bank of simulated rooms "
        "serves.",
    )
    rir_bank: int = Field(
        200,
        ge=0,
        le=1_000_000,
        description="Number of simulated rooms; 0: no reverberation. 200 take about 4 s to simulate, once.",
    )
    rir_rt60: Annotated[tuple[RT60, RT60], AfterValidator(in_order)] = Field(
        (0.1, 0.7), description="Reverberation times of the simulated rooms, in seconds."
    )
    rir_distance: Annotated[tuple[Distance, Distance], AfterValidator(in_order)] = Field(
        (0.5, 4.0), description="Distances from mouth to microphone in the simulated rooms, in metres."
    )
    speed_perturb: Annotated[
        tuple[Annotated[float, Field(ge=0.5, le=2)], ...], AfterValidator(_different)
    ] = Field(
        (),
        description="Speed factors, one of which is drawn for each utterance, e.g. [0.9, 1.0, 1.1]. Pitch "
        "moves with them, so classifying objectives count each speed of a speaker as a speaker of its own. "
        "For small corpora.",
    )
    cache_mb: NotNegative = Field(
        0.0,
        description="Memory for each of the noise, babble and music lists, in MB. Raise it when the disk "
        "is too slow for training.",
    )

    @model_validator(mode="after")
    def _some_weight(self) -> "AugmentConfig":
        if self.reverb_weight + self.additive_weight + self.both_weight == 0:
            raise ValueError("reverb_weight, additive_weight and both_weight are all 0")
        return self


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that reproduces one augmentation."""

    speed: float = 1.0
    rir: int = -1  # row of the impulse responses, -1 = none
    kind: str = ""  # noise, babble, music, "" = nothing added
    rows: tuple[int, ...] = ()  # of that kind's list
    offsets: tuple[float, ...] = ()  # where in the file, as a part of it in [0, 1)
    snr: float = 0.0  # dB
    also: "Profile | None" = None  # what is added beside it


def source_length(num: int, profile: Profile) -> int:
    """Samples to read so that `Augmenter.apply(..., num=num)` gives `num` samples without repeating any."""
    return int(np.ceil(num * profile.speed)) + 1 if profile.speed != 1 else num


def change_speed(wave: np.ndarray, speed: float, num: int | None = None) -> np.ndarray:
    """Change the speed of a wave, the first part of `Augmenter.apply`: float32 [T] -> [num]."""
    if speed != 1:
        import soxr

        num = num or len(wave)
        wave = soxr.resample(wave, SAMPLE_RATE * speed, SAMPLE_RATE)
    if num is not None and num != len(wave):
        wave = wave[:num] if len(wave) > num else np.resize(wave, num)
    return wave


def open_list(
    path: str, what: str, allow_pipes: bool = False, cache_mb: float = 0, channel: int | None = None
):
    """AudioReader of a data directory or a bare wav.scp; None (and a log line) when it is "" or empty."""
    if not path:
        log.info("augment: there is no %s list", what)
        return None
    folder = Path(path)
    file = (
        folder
        if not folder.is_dir()
        else folder / ("utt2spk" if (folder / "utt2spk").exists() else "wav.scp")
    )
    if not file.exists():
        raise UserError(
            f"the {what} list does not exist",
            file=path,
            hint=f'correct the path, or set {what}_list: ""',
        )
    if file.stat().st_size == 0:
        log.warning("augment: the %s list %s is empty and not used", what, path)
        return None
    if file.name == "utt2spk":
        data = DataDir.read(folder)
    else:
        wav = read_table(file, "entry")
        data = DataDir(file.parent, list(wav), list(wav), wav)
    reader = AudioReader(data, allow_pipes, cache_mb, channel)
    reader.preload()
    return reader


class Augmenter:
    """Draws profiles and applies them.

    Args:
        seed: of the bank of simulated rooms only.
        cache_dir: folder where that bank is kept ("" = simulated again each time, about 4 s).
        train: the training data's reader, for `babble_list: train`.
        rooms_later: simulate no rooms, and write nothing, until `make_rooms` is called.
    """

    def __init__(
        self,
        config: AugmentConfig,
        seed: int = 0,
        *,
        cache_dir: str | Path = "",
        train: AudioReader | None = None,
        allow_pipes: bool = False,
        rooms_later: bool = False,
    ):
        self.config = c = config
        if c.babble_list == "train" and train is None:
            raise UserError("augment.babble_list: train needs the training data's reader")
        self.lists: dict[str, AudioReader] = {}
        for kind in _KINDS if c.prob and c.additive_weight + c.both_weight else ():
            path = getattr(c, f"{kind}_list")
            own = kind == "babble" and path == "train"
            reader = train if own else open_list(path, kind, allow_pipes, c.cache_mb)
            if reader is not None:
                self.lists[kind] = reader
        if c.babble_music and self.lists and not {"babble", "music"} <= self.lists.keys():
            raise UserError(
                "augment.babble_music needs lists of both", hint="give both, or set babble_music: false"
            )
        self._rirs: list[np.ndarray] = []
        self._rir_reader, self._bank = None, None
        if c.prob and c.reverb_weight + c.both_weight:
            # Microphone arrays: one channel is an impulse response, the mean of several is not.
            self._rir_reader = open_list(c.rir_list, "rir", allow_pipes, channel=0)
            if self._rir_reader is None and c.rir_bank:
                self._bank = c.rir_bank, seed, c.rir_rt60, c.rir_distance, cache_dir
        self.num_rirs = len(self._rir_reader) if self._rir_reader else self._bank[0] if self._bank else 0
        if not rooms_later:
            self.make_rooms()
        # Weights of reverberation alone, addition alone, both. The weight of what cannot be done goes to what can.
        reverb, add, both = c.reverb_weight, c.additive_weight, c.both_weight
        if not self.lists:
            reverb, add, both = reverb + both, 0.0, 0.0
        if not self.num_rirs:
            reverb, add, both = 0.0, (add + both if self.lists else 0.0), 0.0
        self._modes = np.cumsum([reverb, add, both])
        if c.prob and not self._modes[-1]:
            log.warning("augment: there is no list and no impulse response; crops are not augmented")
        self._fft: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def make_rooms(self) -> None:
        """Simulate the rooms of the bank, or read them from `cache_dir`, unless that is done or not wanted."""
        if self._bank and not self._rirs:
            self._rirs = bank(*self._bank)

    # ---- drawing -----------------------------------------------------------------------------------------
    def draw_speed(self, rng: np.random.Generator) -> int:
        """Draw a place in `speed_perturb`; 0 where that is empty."""
        return int(rng.integers(len(self.config.speed_perturb))) if self.config.speed_perturb else 0

    def draw(self, rng: np.random.Generator, speed: float = 1.0) -> Profile:
        c = self.config
        if not self._modes[-1] or rng.random() >= c.prob:
            return Profile(speed)
        mode = int(np.searchsorted(self._modes, rng.random() * self._modes[-1], side="right"))
        rir = int(rng.integers(self.num_rirs)) if mode != 1 else -1
        if mode == 0:
            return Profile(speed, rir)
        kinds = [*self.lists, *(["babble+music"] if c.babble_music else [])]
        kind, *others = kinds[rng.integers(len(kinds))].split("+")
        also = self._addition(rng, others[0]) if others else None
        return replace(self._addition(rng, kind, also), speed=speed, rir=rir)

    def _addition(self, rng: np.random.Generator, kind: str, also: Profile | None = None) -> Profile:
        """An addition of this kind, beside `also`."""
        c = self.config
        num = int(rng.integers(c.babble_speakers[0], c.babble_speakers[1] + 1)) if kind == "babble" else 1
        rows = tuple(rng.integers(len(self.lists[kind]), size=num).tolist())
        low, high = getattr(c, f"{kind}_snr")
        if kind == "babble" and c.babble_snr_each:
            for row, offset, snr in zip(
                rows, rng.random(num).tolist(), rng.uniform(low, high, size=num).tolist()
            ):
                also = Profile(kind=kind, rows=(row,), offsets=(offset,), snr=snr, also=also)
            assert also is not None  # a babble has a talker
            return also
        snr = float(rng.uniform(low, high))
        return Profile(kind=kind, rows=rows, offsets=tuple(rng.random(num).tolist()), snr=snr, also=also)

    # ---- applying ----------------------------------------------------------------------------------------
    def apply(self, wave: np.ndarray, profile: Profile, num: int | None = None) -> np.ndarray:
        """`wave` float32 [T] with speed, reverberation, then addition at the profile's SNR; float32 [num].

        `num` defaults to T. Where speed leaves fewer samples the crop is repeated from its start; see
        `source_length`. The SNR holds over the crop: mean power of the (reverberant) speech over the noise's.
        """
        waves = np.array(change_speed(wave, profile.speed, num))[None]
        self.apply_to_batch(waves, [profile])
        return waves[0]

    def apply_to_batch(self, waves: np.ndarray, profiles: list[Profile]) -> None:
        """Do what `apply` does after the speed, to each of `waves` float32 [B, T] in place."""
        reverberant = [i for i, profile in enumerate(profiles) if profile.rir >= 0]
        for first in range(0, len(reverberant), _FFT_ROWS):
            rows = reverberant[first : first + _FFT_ROWS]
            waves[rows] = self._reverberate(waves[rows], [profiles[i].rir for i in rows])
        for wave, drawn in zip(waves, profiles):
            power = np.dot(wave, wave)
            profile: Profile | None = drawn
            while profile is not None and profile.kind:
                added = self._added(profile, len(wave))
                noise_power = np.dot(added, added)
                if noise_power > 1e-10 * len(added):  # digital silence in a list adds nothing
                    gain = np.sqrt(power / noise_power) * 10 ** (-profile.snr / 20)
                    wave += added * np.float32(gain)
                profile = profile.also

    def rir(self, row: int) -> np.ndarray:
        """Impulse response float32 [n]: starts at its strongest sample, energy 1."""
        return align(self._rir_reader.read(row)) if self._rir_reader else self._rirs[row]

    def _reverberate(self, waves: np.ndarray, rirs: list[int]) -> np.ndarray:
        from scipy import fft

        # One length for all responses, so that the circular part always falls behind the crop.
        length = fft.next_fast_len(waves.shape[1] + MAX_LENGTH, real=True)
        spectra = fft.rfft(waves, length)
        for spectrum, rir in zip(spectra, rirs):
            spectrum *= self._response(rir, length)
        return fft.irfft(spectra, length, overwrite_x=True)[:, : waves.shape[1]]

    def _response(self, row: int, length: int) -> np.ndarray:
        """Spectrum of an impulse response, complex64 [length // 2 + 1]; those used last are kept."""
        from scipy import fft

        response = self._fft.get((row, length))
        if response is None:
            response = fft.rfft(self.rir(row), length)
            while self._fft and (len(self._fft) + 1) * response.nbytes > _FFT_CACHE:
                self._fft.popitem(last=False)
            self._fft[row, length] = response
        else:
            self._fft.move_to_end((row, length))
        return response

    def _added(self, profile: Profile, num: int) -> np.ndarray:
        reader = self.lists[profile.kind]
        if profile.kind != "babble":
            return _crop(reader, profile.rows[0], profile.offsets[0], num)
        total = np.zeros(num, np.float32)
        for row, offset in zip(profile.rows, profile.offsets):
            x = _crop(reader, row, offset, num)
            rms = np.sqrt(np.dot(x, x) / num)
            if rms > 1e-5:
                total += x / np.float32(rms)  # talkers are equally loud
        return total


def _crop(reader: AudioReader, row: int, offset: float, num: int) -> np.ndarray:
    """`num` samples of a file from the relative `offset`; a shorter file is repeated from a turned start."""
    length = reader.num_samples(row)
    if length >= num:
        x = reader.read(row, int(offset * (length - num + 1)), num, back=True)
        if len(x) == num:
            return x
    else:
        x = reader.read(row)
        x = np.roll(x, -int(offset * len(x)))
    return np.resize(x, num)
