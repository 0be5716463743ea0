"""Kaldi data directories: read and check, subset, combine, split, rename, write.

Utterances are kept in C order. `utt2spk` and `spk2utt` are required, and `wav.scp` unless a caller does
without; every other known file is checked if present. An unknown speaker is written as `utt utt`. Utterance
ids need no speaker prefix. `utt2spk_true` (true speakers of an unlabelled directory) is never read or copied.
`pyspkv.data.fix` repairs broken directories.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyspkv.base.atomic import atomic_dir, atomic_file, command_line
from pyspkv.base.errors import UserError
from pyspkv.base.garbage import no_gc
from pyspkv.data.tables import checked_segment, has_bad_characters, read_columns, read_table
from pyspkv.data.trials import contradiction, cut_trials, enrol_side, read_trials

__all__ = ["DataDir", "read_table", "read_trials", "table_kind"]

# File -> (what its first column names, kind of its other columns as in tables.VALUES).
_KINDS = {
    "utt2spk": ("utt", "id"),
    "spk2utt": ("spk", "ids"),
    "wav.scp": ("reco", "entry"),
    "segments": ("utt", "segment"),
    "text": ("utt", "any"),
    "feats.scp": ("utt", "rest"),
    "vad.scp": ("utt", "rest"),
    "utt2dur": ("utt", "seconds"),
    "utt2num_samples": ("utt", "count"),
    "utt2num_frames": ("utt", "count"),
    "utt2dialogue": ("utt", "id"),
    "utt2time": ("utt", "time"),
    "utt2source": ("utt", "source"),
    "utt2device": ("utt", "id"),
    "reco2dur": ("reco", "seconds"),
    "reco2file_and_channel": ("reco", "channel"),
    "cmvn.scp": ("spk", "rest"),
    "spk2gender": ("spk", "gender"),
    "dialogue2device": ("dialogue", "id"),
    "dialogue2mixed": ("dialogue", "flag"),
    "enrol_map": ("model", "ids"),
}
_SINGLE = ("dialogue2device", "dialogue2mixed", "enrol_map")
# What the tools write next to the tables: folders of parts, and folders of tables (also temporary and older
# ones).
_PARTS = re.compile(r"split\d+(utt)?|\.split\d+(utt)?\.\w{8}\.(tmp|old)")
_ASIDE = re.compile(r"\.backup(\.\d+)?|\.fix|\.\.backup(\.\d+)?\.\w{8}\.tmp|\.fix\.\w{8}\.tmp")
OVERSHOOT = 0.5  # seconds a segment may end after its recording, as Kaldi's extract-segments allows


def table_kind(name: str) -> tuple[str, str] | None:
    """(what the first column names, kind of the others) for a data-directory file; None for others."""
    if name in _KINDS:
        return _KINDS[name]
    if re.fullmatch(r"trials([_.-][\w.-]*)?", name):
        return "trials", "trial"
    if name != "utt2spk_true" and (m := re.fullmatch(r"(utt|spk|reco)2\w+", name)):
        return m[1], "rest"
    return None


def hint_command(path: str | Path, *options: str) -> str:
    """The command that fixes `path`, for hints."""
    return command_line("utils/fix_data_dir.sh", *options, Path(path))


def spk2utt_lines(utts: Sequence[str], spk: Sequence[str]) -> list[str]:
    """`spk utt1 utt2 ...` lines in C order."""
    by_spk: dict[str, list[str]] = {}
    for u, s in zip(utts, spk):
        by_spk.setdefault(s, []).append(u)
    return [f"{s} {' '.join(by_spk[s])}" for s in sorted(by_spk)]


def list_tables(path: Path) -> dict[str, tuple[str, str]]:
    """Name -> kind of the data-directory files in `path`. UserError when there is no such directory."""
    if not path.is_dir():
        if path.exists():
            raise UserError("is a file, not a data directory", file=path, hint="give the folder of the file")
        old = [
            p
            for p in path.parent.glob("*.old")
            if re.fullmatch(rf"\.{re.escape(path.name)}\.\w{{8}}\.old", p.name)
        ]
        # A killed run left the old folder under this name
        hint = command_line("mv", old[0], path) if old else None
        raise UserError(
            "no such data directory", file=path, hint=hint or "check the path; stage 1 makes data"
        )
    tables = {p: kind for p in sorted(path.iterdir()) if (kind := table_kind(p.name)) and not p.is_dir()}
    for p in tables:
        if not p.is_file():
            what = (
                "a link to nowhere" if p.is_symlink() and not p.exists() else "a pipe or device, not a file"
            )
            raise UserError(f"is {what}", file=p, hint="replace it by the file itself, or remove it")
    return {p.name: kind for p, kind in tables.items()}


@dataclass
class DataDir:
    """Content of a checked data directory.

    `wav` is keyed by recording if there are segments, else by utterance.
    """

    path: Path
    utts: list[str]  # C order
    spk: list[str]  # aligned with utts
    wav: dict[str, str]
    segments: dict[str, tuple[str, float, float]] | None = None  # utt -> (recording, start s, end s)
    utt_tables: dict[str, dict[str, str]] = field(default_factory=dict)  # utterance-keyed files, by file name
    reco_tables: dict[str, dict[str, str]] = field(default_factory=dict)  # reco2dur, ...
    spk_tables: dict[str, dict[str, str]] = field(default_factory=dict)  # spk2gender, cmvn.scp, ...
    dialogue2device: dict[str, str] | None = None
    dialogue2mixed: dict[str, str] | None = None
    enrol_map: dict[str, str] | None = None  # model -> "utt1 utt2 ..."
    trials: dict[str, list[str]] = field(default_factory=dict)  # file name -> lines, in the file's order

    # ---- reading -----------------------------------------------------------------------------------------
    @classmethod
    def read(cls, path: str | Path, *, need_wav: bool = True) -> "DataDir":
        """Read and check every known file.

        need_wav: require wav.scp (it is always required if there are segments).
        Raises UserError with file, line, rule and hint when something is wrong.
        """
        path = Path(path)
        present = list_tables(path)
        hint = hint_command(path)
        if "utt2spk" not in present:
            how = hint  # the fixer makes utt2spk from spk2utt
            if "spk2utt" not in present:
                how = "write it: `utt spk` per line, or `utt utt` where the speaker is unknown"
            raise UserError("no such file", file=path / "utt2spk", hint=how)
        if "spk2utt" not in present:
            raise UserError("no such file", file=path / "spk2utt", hint=hint)
        if "wav.scp" not in present and (need_wav or "segments" in present):
            raise UserError(
                "no such file", file=path / "wav.scp", hint="write it: `id path` per line, sorted in C order"
            )
        with no_gc():
            return cls._read(path, present, hint)

    @classmethod
    def _read(cls, path: Path, present: dict[str, tuple[str, str]], hint: str) -> "DataDir":
        utts, spk = read_columns(path / "utt2spk", "id", hint)
        one = {s: s for s in spk}
        spk = [one[s] for s in spk]  # one string object per speaker, not per line
        _check_spk2utt(path / "spk2utt", utts, spk, hint)
        data = cls(path, utts, spk, {})
        lists: dict[str, tuple[list[str], str]] = {"utt": (utts, "utt2spk"), "spk": (sorted(one), "spk2utt")}

        def table(name: str, want: str) -> dict[str, str]:
            keys, values = read_columns(path / name, present[name][1], hint)
            ids, source = lists[want]
            _check_same(path / name, keys, ids, source, hint)
            return dict(zip(ids, values))  # share the id strings

        if "segments" in present:
            data.segments = {u: checked_segment(v) for u, v in table("segments", "utt").items()}
            named = {seg[0]: seg[0] for seg in data.segments.values()}
            data.segments = {u: (named[r], a, b) for u, (r, a, b) in data.segments.items()}
            lists["reco"] = (sorted(named), "segments")
        else:
            lists["reco"] = (utts, "utt2spk")
        if "wav.scp" in present:
            data.wav = table("wav.scp", "reco")
        for name, (keyed, _) in present.items():
            if name in ("utt2spk", "spk2utt", "segments", "wav.scp"):
                continue
            if keyed == "utt":
                data.utt_tables[name] = table(name, "utt")
            elif keyed == "reco":
                data.reco_tables[name] = table(name, "reco")
            elif keyed == "spk":
                data.spk_tables[name] = table(name, "spk")
        for name in ("dialogue2device", "dialogue2mixed"):
            if name in present:
                if "utt2dialogue" not in data.utt_tables:
                    raise UserError(
                        f"{name} without utt2dialogue",
                        file=path / name,
                        hint="write utt2dialogue: `utt dialogue` per line",
                    )
                lists["dialogue"] = (sorted(set(data.utt_tables["utt2dialogue"].values())), "utt2dialogue")
                setattr(data, name, table(name, "dialogue"))
        if data.segments and "reco2dur" in data.reco_tables:
            _check_segment_ends(path / "segments", data.segments, data.reco_tables["reco2dur"], hint)
        data._read_trials(
            [n for n, (keyed, _) in present.items() if keyed == "trials"], "enrol_map" in present, hint
        )
        return data

    def _read_trials(self, names: list[str], has_map: bool, hint: str) -> None:
        known = set(self.utts) if names or has_map else set()
        if has_map:
            file = self.path / "enrol_map"
            self.enrol_map = read_table(file, "ids", hint)
            for line, value in enumerate(self.enrol_map.values(), 1):
                if bad := next((u for u in value.split(" ") if u not in known), None):
                    raise UserError(f"{bad} is not in utt2spk", file=file, line=line, hint=hint)
        for name in names:
            file = self.path / name
            enrol, test, _ = read_trials(file, hint)
            models = enrol_side(set(enrol), known, self.enrol_map)
            for line, (e, t) in enumerate(zip(enrol, test), 1):
                if t not in known:
                    raise UserError(f"test utterance {t} is not in utt2spk", file=file, line=line, hint=hint)
                if models is not None and e not in models:
                    raise UserError(
                        f"{e} is neither in utt2spk nor in enrol_map", file=file, line=line, hint=hint
                    )
            self.trials[name] = file.read_text(encoding="utf-8").split("\n")[:-1]

    # ---- writing -----------------------------------------------------------------------------------------
    def tables(self) -> dict[str, dict]:
        """File name -> table (segments as tuples), for all files except spk2utt and trials."""
        out: dict[str, dict | None] = {"utt2spk": dict(zip(self.utts, self.spk)), "wav.scp": self.wav or None}
        out |= {"segments": self.segments, **self.utt_tables, **self.reco_tables, **self.spk_tables}
        out |= {name: getattr(self, name) for name in _SINGLE}
        return {name: table for name, table in out.items() if table is not None}

    @classmethod
    def from_tables(
        cls, path: str | Path, tables: dict[str, dict], trials: dict[str, list[str]]
    ) -> "DataDir":
        """The inverse of `tables`; keys may come in any order. Nothing is checked here."""
        utt2spk = tables["utt2spk"]
        utts = sorted(utt2spk)
        data = cls(
            Path(path), utts, [utt2spk[u] for u in utts], tables.get("wav.scp", {}), tables.get("segments")
        )
        groups = {"utt": data.utt_tables, "reco": data.reco_tables, "spk": data.spk_tables}
        for name, table in tables.items():
            if name in _SINGLE:
                setattr(data, name, table)
            elif name not in ("utt2spk", "wav.scp", "segments"):
                kind = table_kind(name)
                assert kind is not None  # `tables` has known files only
                groups[kind[0]][name] = table
        data.trials = trials
        return data

    def files(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (file name, lines) of every file; tables in C order, trials in their own order."""
        yield "spk2utt", spk2utt_lines(self.utts, self.spk)
        for name, table in self.tables().items():
            if name == "segments":
                yield name, [f"{u} {r} {_as_text(a)} {_as_text(b)}" for u, (r, a, b) in sorted(table.items())]
            else:
                ids = sorted(table)
                lines = map(" ".join, zip(ids, map(table.__getitem__, ids)))
                yield name, [line.rstrip(" ") for line in lines] if name == "text" else list(lines)
        yield from self.trials.items()

    def write(self, path: str | Path, *, inside: str | Path | None = None, own: bool = False) -> None:
        """Write the whole directory atomically: after a kill the folder is either the old or the new one.

        An existing folder is replaced only if it holds nothing but data-directory files. `inside` and `own`
        are as in `atomic_file`; give `own` when the user named `path` himself, which may then be a link.

        Raises UserError when there is no utterance, or the existing folder holds other files.
        """
        path = Path(path)
        if not self.utts:
            raise UserError("no utterance would remain in this data directory", file=path)
        check_replaceable(path)
        with no_gc(), atomic_dir(path, inside=inside, own=own) as tmp:
            self._write_files(tmp)

    def _write_files(self, folder: Path) -> None:
        for name, lines in self.files():
            with open(folder / name, "w", encoding="utf-8", newline="\n") as f:
                f.write("\n".join(lines) + "\n")

    # ---- new directories from this one -------------------------------------------------------------------
    def subset(self, utts: Iterable[str], *, trials: bool = True) -> "DataDir":
        """The given utterances with everything that belongs to them. UserError when an utterance is unknown.

        A trial or a model of enrol_map stays if all of its utterances do; `trials=False` drops both.
        """
        row = {u: i for i, u in enumerate(self.utts)}
        keep = set(utts)
        if unknown := keep - row.keys():
            raise UserError(
                f"{min(unknown)} is not in utt2spk",
                file=self.path / "utt2spk",
                hint="correct the list of ids",
            )
        return self._subset([row[u] for u in sorted(keep)], trials)

    def _subset(self, rows: list[int], trials: bool) -> "DataDir":
        kept = [self.utts[i] for i in rows]
        spk = [self.spk[i] for i in rows]
        segments = None if self.segments is None else {u: self.segments[u] for u in kept}
        recos = kept if segments is None else sorted({seg[0] for seg in segments.values()})
        speakers = sorted(set(spk))
        extra = {name: {u: t[u] for u in kept} for name, t in self.utt_tables.items()}
        dialogues = sorted(set(extra["utt2dialogue"].values())) if "utt2dialogue" in extra else []
        new = replace(
            self,
            utts=kept,
            spk=spk,
            wav={r: self.wav[r] for r in recos} if self.wav else {},
            segments=segments,
            utt_tables=extra,
            reco_tables={name: {r: t[r] for r in recos} for name, t in self.reco_tables.items()},
            spk_tables={name: {s: t[s] for s in speakers} for name, t in self.spk_tables.items()},
            dialogue2device=self.dialogue2device and {d: self.dialogue2device[d] for d in dialogues},
            dialogue2mixed=self.dialogue2mixed and {d: self.dialogue2mixed[d] for d in dialogues},
            enrol_map=None,
            trials={},
        )
        if trials and (self.trials or self.enrol_map):
            new.enrol_map, new.trials = cut_trials(set(kept), set(self.utts), self.enrol_map, self.trials)
        return new

    def with_speakers(self, spk: Sequence[str]) -> "DataDir":
        """The same utterances with other speakers (aligned with `utts`), without tables of the old speakers.

        Raises UserError when the number of speakers differs.
        """
        if len(spk) != len(self.utts):
            raise UserError(f"{len(spk)} speakers for {len(self.utts)} utterances", file=self.path)
        return replace(self, spk=list(spk), spk_tables={})

    def write_training_set(self, folder: str | Path) -> None:
        """Write train (without speakers), train_labeled (with them) and truth/ (true speakers) into `folder`.

        truth/train_utt2spk is for diagnostics only. Which dialogues are mixed is truth as well, so
        dialogue2mixed goes to train_labeled and truth/, but not to train. UserError when one of the folders
        cannot be replaced.
        """
        folder = Path(folder)
        check_replaceable(folder / "train")  # before any of the four is replaced
        check_replaceable(folder / "train_labeled")
        self.write(folder / "train_labeled", inside=folder)
        with atomic_file(folder / "truth" / "train_utt2spk", inside=folder) as f:
            f.writelines(f"{utt} {spk}\n" for utt, spk in zip(self.utts, self.spk))
        if self.dialogue2mixed is not None:
            with atomic_file(folder / "truth" / "dialogue2mixed", inside=folder) as f:
                f.writelines(f"{name} {mixed}\n" for name, mixed in sorted(self.dialogue2mixed.items()))
        replace(self.with_speakers(self.utts), dialogue2mixed=None).write(folder / "train", inside=folder)

    def write_label_split(self, folder: str | Path, per_speaker: int, seed: int) -> tuple[int, int]:
        """Split off a few labelled utterances for semi-supervised training.

        `folder`/labeled gets `per_speaker` random utterances of each speaker (all, if there are fewer), and
        `folder`/unlabeled the others without speakers. `folder`/truth/unlabeled_utt2spk gets the true
        speakers of the latter, for diagnostics. With the same seed a smaller `per_speaker` draws a subset.

        Returns the numbers of labelled and unlabelled utterances. UserError when one of them would be 0.
        """
        import numpy as np

        folder, rng = Path(folder), np.random.default_rng(seed)
        of: dict[str, list[str]] = {}
        for utt, spk in zip(self.utts, self.spk):
            of.setdefault(spk, []).append(utt)
        drawn = {u for s in sorted(of) for u in rng.permutation(of[s])[:per_speaker].tolist()}
        rest = [(utt, spk) for utt, spk in zip(self.utts, self.spk) if utt not in drawn]
        if per_speaker < 1 or not rest:
            raise UserError(
                f"{per_speaker} labeled utterances per speaker leave no unlabeled one, or are fewer than one",
                file=self.path,
                hint="give at least one, and fewer than the speakers have",
            )
        with atomic_file(folder / "truth" / "unlabeled_utt2spk", inside=folder) as f:
            f.writelines(f"{utt} {spk}\n" for utt, spk in rest)
        unlabeled = self.subset([utt for utt, _ in rest], trials=False)
        unlabeled.with_speakers(unlabeled.utts).write(folder / "unlabeled", inside=folder)
        # Written last: if it exists, so do the other files.
        self.subset(drawn, trials=False).write(folder / "labeled", inside=folder)
        return len(drawn), len(rest)

    def renamed(self, utt: Callable[[str, str], str], spk: Callable[[str], str]) -> "DataDir":
        """Rename utterances by `utt(id, speaker)` and speakers by `spk(speaker)`; recordings of segments keep
        their ids.

        Raises UserError when two would get the same id, or an id contains a blank or a control character.
        """
        new_utt = {u: utt(u, s) for u, s in zip(self.utts, self.spk)}
        new_spk = {s: spk(s) for s in set(self.spk)}
        for what, names in (("utterances", new_utt), ("speakers", new_spk)):
            if len(set(names.values())) != len(names):
                raise UserError(f"two {what} would get the same id", file=self.path / "utt2spk")
            if bad := next((n for n in names.values() if " " in n or has_bad_characters(n)), None):
                raise UserError(f"{ascii(bad)} is not an id: it contains a blank or a control character")
        pairs = sorted((new_utt[u], new_spk[s]) for u, s in zip(self.utts, self.spk))
        models = {e: e if self.enrol_map and e in self.enrol_map else new_utt.get(e, e)
                  for lines in self.trials.values() for e in (line.split()[0] for line in lines)}  # fmt: skip
        by_reco = self.segments is not None
        recos = self.reco_tables
        if not by_reco:
            recos = {name: _rekey(t, new_utt) for name, t in recos.items()}
        return replace(
            self,
            utts=[u for u, _ in pairs],
            spk=[s for _, s in pairs],
            wav=self.wav if by_reco else _rekey(self.wav, new_utt),
            segments=None if self.segments is None else _rekey(self.segments, new_utt),
            utt_tables={name: _rekey(t, new_utt) for name, t in self.utt_tables.items()},
            reco_tables=recos,
            spk_tables={name: _rekey(t, new_spk) for name, t in self.spk_tables.items()},
            enrol_map=self.enrol_map
            and {m: " ".join(sorted(new_utt[u] for u in us.split(" "))) for m, us in self.enrol_map.items()},
            trials={
                name: [f"{models[e]} {new_utt[t]} {label}" for e, t, label in map(str.split, lines)]
                for name, lines in self.trials.items()
            },  # fmt: skip
        )

    def speaker_prefixed(self) -> "DataDir":
        """Utterance ids `<spk>-<utt>`, so that the C order of utterances is also that of speakers, as Kaldi
        demands.

        If one speaker's name begins with another's and breaks that order (`a`, `a-b`), all names are padded
        with `_` to the same length.
        """
        new = self.renamed(lambda u, s: f"{s}-{u}", lambda s: s)
        if new.spk != sorted(new.spk):
            width = max(map(len, self.spk))
            new = self.renamed(lambda u, s: f"{s.ljust(width, '_')}-{u}", lambda s: s.ljust(width, "_"))
        return new

    def split(self, n: int, *, per_utt: bool = False) -> list["DataDir"]:
        """Split into `n` parts with about equal numbers of utterances, without trials.

        A speaker stays in one part unless `per_utt`. UserError when there are fewer speakers (utterances)
        than parts.
        """
        return [self._subset(rows, trials=False) for rows in self._split_rows(n, per_utt)]

    def _split_rows(self, n: int, per_utt: bool) -> list[list[int]]:
        units = len(self.utts) if per_utt else len(set(self.spk))
        if not 1 <= n <= units:
            what = "utterances" if per_utt else "speakers"
            hint = f"give 1 to {units} parts" + ("" if per_utt else ", or give --per-utt")
            raise UserError(f"cannot split {units} {what} into {n} parts", file=self.path, hint=hint)
        rows = list(range(len(self.utts)))
        if not per_utt:
            rows.sort(key=self.spk.__getitem__)
        # A part may end only where the speaker changes. It ends at the first such place that reaches its
        # share, or earlier when otherwise too few speakers would be left for the remaining parts.
        ends = [i for i in range(1, len(rows)) if per_utt or self.spk[rows[i]] != self.spk[rows[i - 1]]]
        ends.append(len(rows))
        cuts, at = [0], 0
        for part in range(1, n):
            while ends[at] < len(rows) * part / n and units - at - 1 > n - part:
                at += 1
            cuts.append(ends[at])
            at += 1
        cuts.append(len(rows))
        return [sorted(rows[a:b]) for a, b in zip(cuts, cuts[1:])]

    def write_split(self, n: int, *, per_utt: bool = False) -> Path:
        """Write the parts to PATH/split<n>/<1..n> (split<n>utt with per_utt) atomically; return that folder.

        Raises UserError when that folder is a link or holds other files.
        """
        folder = self.path / f"split{n}{'utt' if per_utt else ''}"
        if folder.is_symlink():
            raise UserError(
                "is a link, not a folder of parts", file=folder, hint=command_line("unlink", folder)
            )
        if folder.is_dir() and (other := _foreign_in_parts(folder)):
            raise UserError(
                "is not a part, and a new split would delete it", file=other, hint="move it elsewhere"
            )
        with no_gc():
            cut = self._split_rows(n, per_utt)
            with atomic_dir(folder, inside=self.path) as tmp:
                for i, rows in enumerate(cut, 1):
                    (tmp / str(i)).mkdir()
                    self._subset(rows, trials=False)._write_files(tmp / str(i))
        return folder

    def label_hash(self) -> str:
        """SHA-256 over the `utt spk` lines, in hex: identifies the labels that a run trains on."""
        digest = hashlib.sha256()
        for u, s in zip(self.utts, self.spk):
            digest.update(f"{u} {s}\n".encode())
        return digest.hexdigest()


def combine(
    path: str | Path, sources: Sequence[DataDir], extra_files: Sequence[str] = ()
) -> tuple[DataDir, set[str]]:
    """Combine several directories; returns (the new one, names of files left out because some source lacks
    them).

    Raises UserError when an id has different lines in two sources, when only some sources have segments,
    wav.scp or one of `extra_files`, or when a trial is target in one source and nontarget in another.
    """
    held: list[dict[str, Any]] = [{**d.tables(), **d.trials} for d in sources]
    everywhere, anywhere = set(held[0]).intersection(*held), set().union(*held)
    for d, own in zip(sources, held):
        if missing := sorted(((anywhere & {"segments", "wav.scp"}) | set(extra_files)) - set(own)):
            hint = "write it, or combine only directories that have it"
            raise UserError(
                "no such file, but another source has it or --extra-files names it",
                file=d.path / missing[0],
                hint=hint,
            )
    tables: dict[str, dict] = {}
    for name in everywhere - set().union(*(d.trials for d in sources)):
        merged: dict = {}
        tables[name] = merged
        for d, own in zip(sources, held):
            for key, value in own[name].items():
                if merged.setdefault(key, value) != value:
                    hint = "give one of them other ids first (copy_data_dir.sh --utt-prefix)"
                    raise UserError(
                        f"the line of {key} differs from that in an earlier source",
                        file=d.path / name,
                        hint=hint,
                    )
    trials = {
        n: [line for d in sources for line in d.trials[n]] for n in sources[0].trials if n in everywhere
    }
    for name, lines in trials.items():
        if pair := contradiction(lines):
            raise UserError(f"{name}: {pair} is target in one source and nontarget in another", file=path)
    return DataDir.from_tables(path, tables, trials), anywhere - everywhere


def _rekey(table: dict, names: dict[str, str]) -> dict:
    return {names[k]: v for k, v in table.items()}


def _as_text(x: float) -> str:
    return repr(x).removesuffix(".0")


def _check_same(file: Path, keys: list[str], want: list[str], source: str, hint: str) -> None:
    if keys == want:
        return
    have, wanted = set(keys), set(want)
    for line, key in enumerate(keys, 1):
        if key not in wanted:
            raise UserError(f"{key} is not in {source}", file=file, line=line, hint=hint)
    lost = min(wanted - have)
    raise UserError(f"no line for {lost} of {source} ({len(wanted - have)} missing)", file=file, hint=hint)


def _check_spk2utt(file: Path, utts: list[str], spk: list[str], hint: str) -> None:
    keys, values = read_columns(file, "ids", hint)
    want = spk2utt_lines(utts, spk)
    for line, (key, value) in enumerate(zip(keys, values), 1):
        if line > len(want) or f"{key} {value}" != want[line - 1]:
            raise UserError(f"not the inverse of utt2spk at {key}", file=file, line=line, hint=hint)
    if len(keys) < len(want):
        raise UserError(f"speaker {want[len(keys)].split()[0]} of utt2spk is missing", file=file, hint=hint)


def _check_segment_ends(file: Path, segments: dict, reco2dur: dict[str, str], hint: str) -> None:
    dur = {r: float(d) for r, d in reco2dur.items()}
    for line, (utt, (reco, start, end)) in enumerate(segments.items(), 1):
        if end > dur[reco] + OVERSHOOT or start >= dur[reco]:
            rule = f"{utt} ends at {end:g} s" if start < dur[reco] else f"{utt} starts at {start:g} s"
            raise UserError(
                f"{rule} but {reco} has {dur[reco]:g} s (reco2dur)", file=file, line=line, hint=hint
            )


def segment_seconds(data: DataDir) -> dict[str, float]:
    """Utterance -> duration in s, from segments; an end of -1 is looked up in reco2dur.

    UserError without reco2dur.
    """
    dur = {r: float(d) for r, d in data.reco_tables.get("reco2dur", {}).items()}
    out = {}
    assert data.segments is not None  # callers check this
    for utt, (reco, start, end) in data.segments.items():
        if end < 0 and not dur:
            rule = f"{utt} ends with its recording (-1), whose length is unknown"
            raise UserError(
                rule, file=data.path / "segments", hint="write reco2dur (`recording seconds`) or utt2dur"
            )
        out[utt] = (end if end >= 0 else dur[reco]) - start
    return out


def _is_table(p: Path) -> bool:
    return table_kind(p.name) is not None and p.is_file()


def _foreign_in_parts(folder: Path) -> Path | None:
    """A path in a folder of parts (folders 1, 2, ... of tables) that our tools did not write; else None."""
    for part in sorted(folder.iterdir()):
        if not re.fullmatch("[1-9][0-9]*", part.name) or part.is_symlink() or not part.is_dir():
            return part
        if other := next((p for p in sorted(part.iterdir()) if not _is_table(p)), None):
            return other
    return None


def _foreign(path: Path) -> Path | None:
    """A path in a data directory that the tools here did not write; None if there is none.

    Searches all levels.
    """
    for p in sorted(path.iterdir()):
        folder = p.is_dir() and not p.is_symlink()
        if folder and _PARTS.fullmatch(p.name):
            other = _foreign_in_parts(p)
        elif folder and _ASIDE.fullmatch(p.name):
            other = next((q for q in sorted(p.iterdir()) if not _is_table(q)), None)
        else:
            other = None if _is_table(p) or p.name == ".lock" else p
        if other:
            return other
    return None


def check_replaceable(path: Path) -> None:
    """UserError unless `path` is free, or is a folder that only holds files which this module writes."""
    if path.exists() and not path.is_dir():
        raise UserError(
            "is a file, so no data directory can be written here", file=path, hint="choose another name"
        )
    if path.is_dir() and (other := _foreign(path)):
        raise UserError(
            "is not a file of a data directory, and replacing the folder would delete it",
            file=other, hint="move it elsewhere, or choose another folder",
        )  # fmt: skip
