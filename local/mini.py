#!/usr/bin/env python3
"""Make the corpus of egs/mini: synthetic speakers in several sessions each, as Kaldi data directories.

A speaker has a voice variant, accent, pitch, intonation, tempo, vocal-tract factor and spectral color. A
session adds a room, a microphone, a noise, a level and a daily variation of the voice; each utterance varies
a little more. The sessions of all speakers in a split share rooms and microphones, so a channel does not
reveal the speaker.

Each session depends only on the options, the seed and its name. So the order and number of jobs do not
matter, and after a kill a second run makes what is missing.
"""

import os

from pyspkv.base.errors import guard

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported; the jobs already use all cores
if __name__ == "__main__":
    guard()  # before numpy is imported, which takes a while, so that Ctrl-C prints one line

import argparse
import ctypes
import json
import multiprocessing
import signal
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import mini_espeak as espeak
import numpy as np
from mini_sound import KNOTS, curve, noise, samples, shaped, write_flac

from pyspkv.audio import rir
from pyspkv.audio.reader import SAMPLE_RATE
from pyspkv.base import foreign
from pyspkv.base.atomic import atomic_file, command_line
from pyspkv.base.errors import UserError, natural, run
from pyspkv.data.datadir import DataDir
from pyspkv.data.make_trials import make_trials

ACCENTS = [
    "en",
    "en-us",
    "en-us-nyc",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
]
SPLITS = {
    "train": ("trn", 0.5),
    "dev": ("dev", 0.2),
    "test": ("tst", 0.3),
}  # id prefix, share of the variants
NOISES = ("colored", "hum", "traffic", "clatter", "babble")
WORDS = """able about above across after again air almost along always animal answer apple around arrive ask autumn
away baby back ball bank basket beach bear beautiful become before begin behind believe below bench better between
big bird black blue boat body book border bottle bottom bread break breakfast bridge bring brother brown build bus
busy butter button call camp candle carry castle cat catch center chair change cheese chicken child choose church
circle city clean clear climb clock close cloud coffee cold color come company cook copper corner cotton count country
course cousin cover cross cup dance danger dark daughter deep desk different dinner doctor dog door dozen dream dress
drink drive dry during early earth east easy eight either electric empty engine enough evening every example eye face
family farm fast father feather field fifty finger finish fire fish floor flower fly follow forest forget four free
fresh friend front fruit full garden gentle gift girl give glass gold good grain grass great green ground group grow
guess half hammer hand happy harbor harvest hat head heart heavy help high hill history hold holiday home honey horse
hotel hour house hundred hungry ice idea inside iron island join journey juice jump kettle keep key kind king kitchen
knee knife ladder lake lamp language large last late laugh lead leaf learn leave left lemon letter library light line
listen little live long look loud lucky lunch machine make many market matter meadow measure meet metal middle milk
million minute mirror money month moon morning mother mountain mouth move music narrow near neighbor never new next
night noise north nothing number ocean office often old only open orange order other outside over page paint paper
parent park party pencil people pepper picture piece pillow place plane plant play please pocket point poor potato
pretty price problem pull purple push quarter queen question quick quiet quite rabbit radio rain reach ready reason
red remember repeat rest rice rich ride right ring river road rock roof room round rule safe salt same sand school
sea second secret seed sell seven shade shape sharp sheep ship shirt shoe shop short shoulder side silver simple sing
sister six sleep slow small smile smoke snow soap soft soldier some song sound south space speak spend spoon spring
square stairs star station stone story strange street strong student sugar summer sun supper sure sweet swim table
talk tall teach ten thank thick thin think third thirty thousand three through ticket tiger together tomorrow tower
town train travel tree trouble true turn twelve twenty two uncle under until valley village visit voice wait walk wall
warm wash watch water weather week west wheat wheel white whole wide wild wind window winter woman wonder wood wool
word work world worry write yard year yellow yesterday young""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Speaker:
    """Properties of a synthetic speaker."""

    id: str
    variant: str
    gender: str
    accent: str
    pitch: float  # in espeak's units, where 50 is the variant's own pitch
    intonation: float
    rate: float  # words per minute
    tract: float  # factor on pitch and formants, by resampling
    color: tuple[float, ...]  # dB at KNOTS


def generator(args, *name) -> np.random.Generator:
    """Random generator that depends only on the seed and a name."""
    return np.random.default_rng([args.seed, zlib.crc32(" ".join(map(str, name)).encode())])


def make_speakers(args, split: str) -> list[Speaker]:
    """The speakers of a split.

    With another number of speakers the first ones stay the same, except for `tract`.
    """
    prefix, _ = SPLITS[split]
    num = getattr(args, f"num_{split}_spk")
    rng = generator(args, "speakers", split)
    own = {}
    for gender in "fm":
        # Each split takes a share of one shuffled list, so no variant is in two splits.
        names = [v for v, g in espeak.variants().items() if g == gender]
        generator(args, "variants", gender).shuffle(names)
        ends = np.rint(np.cumsum([0, *(share for _, share in SPLITS.values())]) * len(names)).astype(int)
        at = list(SPLITS).index(split)
        own[gender] = names[ends[at] : ends[at + 1]]
    genders = ["f" if i % 5 in (1, 3) else "m" for i in range(num)]
    # Speakers with the same variant get different vocal-tract factors, spread over the range.
    tracts = {}
    for gender in "fm":
        count = -(-genders.count(gender) // len(own[gender]))
        for variant in own[gender]:
            steps = (np.arange(count) + rng.uniform(0.2, 0.8, count)) / count
            tracts[variant] = list(1 + (2 * rng.permutation(steps) - 1) * 0.16 * args.spread)
    seen = {"f": 0, "m": 0}
    speakers = []
    for i, gender in enumerate(genders):
        variant = own[gender][seen[gender] % len(own[gender])]
        seen[gender] += 1
        speakers.append(
            Speaker(
                id=f"{prefix}{i:04d}",
                variant=variant,
                gender=gender,
                accent=ACCENTS[rng.integers(len(ACCENTS))],
                pitch=50 + rng.uniform(-20, 20) * args.spread,
                intonation=50 + rng.uniform(-30, 30) * args.spread,
                rate=165 + rng.uniform(-25, 25) * args.spread,
                tract=tracts[variant].pop(),
                color=tuple(rng.normal(0, 3 * args.spread, len(KNOTS))),
            )
        )
    return speakers


def make_microphones(args, split: str) -> list[tuple]:
    """Microphones of a split: (gains in dB at KNOTS, lower cut-off Hz, upper cut-off Hz)."""
    rng = generator(args, "microphones", split)
    return [
        (tuple(rng.normal(0, args.mic_db, len(KNOTS))), rng.uniform(40, 250), rng.uniform(*args.bandwidth))
        for _ in range(args.num_mics)
    ]


def tempo(args, speaker: Speaker, rate: float) -> int:
    """espeak's rate, such that resampling by `tract` gives the wanted words per minute."""
    return int(np.clip(round(rate / speaker.tract), 80, 450))


class Maker:
    """Data that all jobs share; it reaches them by fork."""

    def __init__(self, args):
        self.args = args
        self.speakers = {split: make_speakers(args, split) for split in SPLITS}
        self.mics = {split: make_microphones(args, split) for split in SPLITS}
        self.rooms: dict[str, list[np.ndarray]] = {}

    def session_files(self, split: str, speaker: Speaker, session: int) -> list[tuple[str, Path]]:
        num = self.args.utts_per_session if split == "train" else self.args.eval_utts_per_session
        ids = [f"{speaker.id}-{session:02d}-{k:02d}" for k in range(num)]
        return [(u, self.args.dir / "audio" / split / speaker.id / f"{u}.flac") for u in ids]

    def make_session(self, task: tuple[str, int, int]) -> None:
        """Synthesize and record one session. Its files are written atomically."""
        args, (split, row, session) = self.args, task
        speaker = self.speakers[split][row]
        rng = generator(args, "session", speaker.id, session)
        impulse = self.rooms[split][rng.integers(args.num_rooms)]
        knots, low, high = self.mics[split][rng.integers(args.num_mics)]
        kind = NOISES[rng.integers(len(NOISES))]
        snr, level = rng.uniform(*args.snr), rng.uniform(-36, -18)
        color, fixed = rng.uniform(0, 2), rng.random()
        j = args.jitter
        day = rng.normal(0, [5 * j, 0.05 * j, 8 * j])  # pitch, log tempo, intonation
        said, plans = [], []
        files = self.session_files(split, speaker, session)
        for _ in files:
            seconds = rng.uniform(*args.seconds)
            pitch, pace, intonation = day + rng.normal(0, [5 * j, 0.05 * j, 8 * j])
            rate = speaker.rate * np.exp(pace)
            text = " ".join(rng.choice(WORDS, int(seconds * rate / 60 * 1.3) + 3))
            said.append(
                espeak.Utterance(
                    text,
                    f"{speaker.accent}+{speaker.variant}",
                    int(np.clip(round(speaker.pitch + pitch), 0, 99)),
                    int(np.clip(round(speaker.intonation + intonation), 0, 99)),
                    tempo(args, speaker, rate),
                )
            )
            plans.append((seconds, speaker.tract * np.exp(rng.normal(0, 0.012 * j)), rng.normal(0, 1.5)))
        if kind == "babble":  # by voices of this split only, so that no test variant is heard in training
            talkers = rng.choice(len(self.speakers[split]), 4)
            for t in (self.speakers[split][i] for i in talkers):
                text = " ".join(rng.choice(WORDS, 14))
                said.append(
                    espeak.Utterance(
                        text, f"{t.accent}+{t.variant}", int(t.pitch), 50, tempo(args, t, t.rate)
                    )
                )
        waves = espeak.speak(said)
        babble = [samples(w, 1.0, 5.0) for w in waves[len(files) :]]
        for (utt, path), pcm, (seconds, tract, drift) in zip(files, waves, plans):
            own = generator(args, "utterance", utt)
            dry = samples(pcm, tract, seconds)
            num = len(dry)
            wet = shaped(dry, lambda f: curve(f, speaker.color), impulse)
            wet /= wet.std()
            if babble:
                added = sum(np.resize(np.roll(b, own.integers(len(b))), num) for b in babble)
            else:
                added = noise(own, kind, num, color, fixed)
            x = wet + added / added.std() * 10 ** (-(snr + drift) / 20)
            x = shaped(x, lambda f: curve(f, knots, low, high))
            x *= 10 ** (level / 20) / x.std()
            write_flac(path, x)


_maker: Maker | None = None


def _start_worker() -> None:
    """End the job with its parent, even if that is killed, and leave Ctrl-C to the parent."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(task) -> None:
    _maker.make_session(task)


def synthesize(maker: Maker) -> None:
    """Make every missing session."""
    from tqdm import tqdm

    global _maker
    args = maker.args
    todo = [
        (split, row, session)
        for split in SPLITS
        for row, speaker in enumerate(maker.speakers[split])
        for session in range(args.sessions)
        if not all(path.exists() for _, path in maker.session_files(split, speaker, session))
    ]
    for stale in (args.dir / "audio").rglob(".*"):  # temporary files of a killed run
        stale.unlink()
    if not todo:
        return
    for split in sorted({t[0] for t in todo}):
        maker.rooms[split] = [
            rir.simulate(generator(args, "room", split, i), args.rt60, (0.3, 2.5))
            for i in range(args.num_rooms)
        ]
    _maker = maker
    with multiprocessing.get_context("fork").Pool(args.nj, _start_worker) as pool:
        done = pool.imap_unordered(_work, todo)
        for _ in tqdm(done, total=len(todo), desc="synthesize", unit="session", disable=None, leave=False):
            pass


def write_dirs(maker: Maker) -> None:
    """Write the data directories, the truth and the trials, after all audio exists."""
    import soundfile

    args, root = maker.args, maker.args.dir
    sessions = {}
    for split in SPLITS:
        wav, spk, counts = {}, [], {}
        for speaker in maker.speakers[split]:
            for session in range(args.sessions):
                for utt, path in maker.session_files(split, speaker, session):
                    wav[utt], counts[utt], sessions[utt] = str(path), soundfile.info(path).frames, utt[:-3]
                    spk.append(speaker.id)
        utts = list(wav)
        extra = {
            "utt2num_samples": {u: str(n) for u, n in counts.items()},
            "utt2dur": {u: f"{n / SAMPLE_RATE:.6f}" for u, n in counts.items()},
        }
        data = DataDir(root / split, utts, spk, wav, utt_tables=extra)
        if split == "train":
            data.write_training_set(root)
            continue
        gender = {s.id: s.gender for s in maker.speakers[split]}
        trials = make_trials(
            utts,
            spk,
            seed=args.seed,
            max_targets=args.max_trials // 3,
            max_nontargets=args.max_trials - args.max_trials // 3,
            session=sessions,
            group=gender,
        )
        data.trials = {"trials": trials}
        data.write(root / split)
        targets = sum(line.endswith(" target") for line in trials)
        print(
            f"{split}: {len(gender)} speakers, {len(utts)} utterances, {targets} + {len(trials) - targets} trials"
        )
    write_table(root / "truth" / "utt2session", sorted(sessions.items()))
    rows = [(s.id, s.gender, s.variant.replace(" ", "_"), s.accent, f"{s.pitch:.1f}", f"{s.tract:.3f}")
            for split in SPLITS for s in maker.speakers[split]]  # fmt: skip
    write_table(root / "truth" / "speakers", rows)


def write_table(path: Path, rows) -> None:
    with atomic_file(path) as f:
        f.writelines(" ".join(row) + "\n" for row in rows)


def write_noise(args) -> None:
    """Write a data directory of noises for augmentation: the kinds of the sessions, other realisations."""
    wav = {}
    for i in range(args.num_noises):
        utt = f"noise-{i:03d}"
        path = args.dir / "audio" / "noise" / f"{utt}.flac"
        wav[utt] = str(path)
        if not path.exists():
            rng = generator(args, "noise", i)
            x = noise(rng, NOISES[i % 4], 8 * SAMPLE_RATE, rng.uniform(0, 2), rng.random())
            write_flac(path, 0.05 * x)
    DataDir(args.dir / "noise", list(wav), list(wav), wav).write(args.dir / "noise")


def pair(text: str) -> tuple[float, float]:
    low, _, high = text.partition(",")
    try:
        value = float(low), float(high)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH") from None
    if value[0] > value[1]:
        raise argparse.ArgumentTypeError(f"{text!r} has its higher end first")
    return value


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="local/mini.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument(
        "dir",
        metavar="DATADIR",
        type=Path,
        help="output folder of train, train_labeled, dev, test, noise and truth",
    )
    p.add_argument("--nj", type=int, default=2, help="number of processes")
    p.add_argument("--seed", type=natural, default=0, help="seed of all random choices")
    p.add_argument("--num-train-spk", type=int, default=100, help="number of training speakers")
    p.add_argument("--num-dev-spk", type=int, default=20, help="number of dev speakers")
    p.add_argument("--num-test-spk", type=int, default=40, help="number of test speakers")
    p.add_argument("--sessions", type=int, default=4, help="sessions per speaker")
    p.add_argument("--utts-per-session", type=int, default=4, help="utterances per training session")
    p.add_argument("--eval-utts-per-session", type=int, default=5, help="utterances per dev and test session")
    p.add_argument(
        "--max-trials",
        type=int,
        default=18000,
        help="number of trials of dev, and of test; a third are targets",
    )
    p.add_argument("--num-noises", type=int, default=40, help="number of 8 s files in DATADIR/noise")
    hard = p.add_argument_group("difficulty")
    hard.add_argument(
        "--spread", type=float, default=2.0, help="how much speakers differ (apart from their variant)"
    )
    hard.add_argument(
        "--jitter", type=float, default=0.15, help="how much a speaker varies over days and utterances"
    )
    hard.add_argument("--snr", type=pair, default=(8.0, 22.0), metavar="LOW,HIGH", help="SNR of sessions, dB")
    hard.add_argument(
        "--rt60", type=pair, default=(0.15, 0.6), metavar="LOW,HIGH", help="reverberation time of rooms, s"
    )
    hard.add_argument(
        "--mic-db",
        type=float,
        default=5.0,
        help="standard deviation of a microphone's frequency response, dB",
    )
    hard.add_argument(
        "--bandwidth",
        type=pair,
        default=(3400.0, 8000.0),
        metavar="LOW,HIGH",
        help="bandwidth of microphones, Hz",
    )
    hard.add_argument(
        "--seconds", type=pair, default=(2.5, 4.0), metavar="LOW,HIGH", help="length of an utterance"
    )
    hard.add_argument("--num-rooms", type=int, default=100, help="rooms per split")
    hard.add_argument("--num-mics", type=int, default=300, help="microphones per split")
    args = p.parse_args(argv)
    for name, least in (("nj", 1), ("sessions", 2), ("num_rooms", 1), ("num_mics", 1), ("num_noises", 0)):
        if getattr(args, name) < least:
            p.error(f"--{name.replace('_', '-')} must be at least {least}")
    for split in SPLITS:
        if not 4 <= getattr(args, f"num_{split}_spk") <= 2000:
            p.error(f"--num-{split}-spk must be from 4 to 2000")
    if min(args.utts_per_session, args.eval_utts_per_session) < 1:
        p.error("--utts-per-session and --eval-utts-per-session must be at least 1")
    if args.rt60[0] < 0.1 or args.seconds[0] < 0.5:
        p.error("--rt60 must be at least 0.1 s, --seconds at least 0.5 s")
    args.dir = args.dir.absolute()
    return args


def check_options(args) -> None:
    """UserError when the folder already holds a corpus that was made with other options."""
    file = args.dir / "mini.json"
    options = {k: v for k, v in sorted(vars(args).items()) if k not in ("dir", "nj")}
    text = json.dumps(options, indent=1) + "\n"
    if file.exists() and file.read_bytes() != text.encode():
        hint = command_line("rm", "-r", args.dir)
        old = foreign.read_json(file, hint=hint)
        now = json.loads(text)
        names = ", ".join(k for k in {**old, **now} if old.get(k) != now.get(k))
        raise UserError(f"this corpus was made with other options ({names})", file=file, hint=hint)
    with atomic_file(file) as f:
        f.write(text)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    check_options(args)
    maker = Maker(args)
    synthesize(maker)
    if args.num_noises:
        write_noise(args)
    write_dirs(maker)
    return 0


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
