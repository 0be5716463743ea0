"""The input of a job runner: options, jobs, log and command; and Kaldi's config file that maps options to
sbatch's."""

import hashlib
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from pyspkv.base.errors import UserError

NUMBERS = ("max_jobs_run", "num_threads", "gpu", "num_nodes")
OWN = ("config", "max_jobs_run", "show")  # options for the runner itself, not for sbatch
JOBS = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=([0-9]{1,9})(?::([0-9]{1,9}))?")
SHELL_USAGE = "see the --help of slurm.sh"
# Variables that a job gets from the submitting shell; `export` lines of the config add more.
EXPORTED = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_*", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "SLURM_CONF"),
    *("PYTHONPATH", "PYTHONHASHSEED", "PYTHONWARNINGS", "VIRTUAL_ENV", "CONDA_*", "PYENV_*", "SPKV_*"),
    *("OMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "NUMEXPR_*", "NUMBA_*", "MALLOC_*", "TQDM_*", "MPLCONFIGDIR"),
    *("TORCH_*", "PYTORCH_*", "CUBLAS_*", "CUDA_HOME", "CUDA_LAUNCH_BLOCKING", "NCCL_*", "GLOO_*"),
    *("HF_*", "TRANSFORMERS_*", "XDG_*"),
)


@dataclass
class Call:
    """`[OPTIONS] [JOB=1:n] [OPTIONS] LOG COMMAND...`, called in the folder `cwd`."""

    options: dict[str, str]  # names with underscores
    name: str  # word that is replaced by the number (JOB); empty: a single job without a number
    numbers: range
    log: str
    command: list[str]
    cwd: str = field(default_factory=os.getcwd)

    def log_of(self, number: int) -> Path:
        """Log file of a job."""
        return Path(self.cwd, self.log.replace(self.name, str(number)) if self.name else self.log)

    def hash_of(self, number: int) -> str:
        """Hash of a job's command. A done-file with another hash does not count."""
        words = [w.replace(self.name, str(number)) if self.name else w for w in self.command]
        text = "\0".join([self.cwd, self.options.get("num_nodes", "1"), *words])
        return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]

    def state(self) -> Path:
        """Folder for the state of these jobs: next to the logs, but above folders named after the number."""
        folder, rest = Path(self.log).parent, [Path(self.log).name]
        while self.name and self.name in str(folder):
            folder, rest = folder.parent, [folder.name, *rest]
        return Path(self.cwd, folder, ".slurm", "+".join(rest))


def parse_call(words: list[str]) -> Call:
    """Parse the runner's arguments. UserError when they do not have the form of a call."""
    words, options, name, numbers = list(words), {}, "", range(1, 2)
    while words:
        if words[0].startswith("--"):
            option, equals, value = words.pop(0)[2:].partition("=")
            if not equals and not words:
                raise UserError(f"--{option} needs a value", hint=SHELL_USAGE)
            value = value if equals else words.pop(0)
            option = option.replace("-", "_")
            if option in NUMBERS and not (value.isascii() and value.isdecimal() and len(value) < 10):
                raise UserError(f"--{option.replace('_', '-')} must be a whole number, not {value[:40]!a}")
            options[option] = value
        elif not name and (found := JOBS.fullmatch(words[0])):
            name, first, last = found[1], int(found[2]), int(found[3] or found[2])
            numbers = range(first, last + 1)
            if not numbers:
                raise UserError(f"there are no jobs in {words[0]}")
            words.pop(0)
        else:
            break
    if len(words) < 2:
        raise UserError("expected [JOB=1:n] LOG COMMAND", hint=SHELL_USAGE)
    log, *command = words
    if len(numbers) > 1 and name not in log:
        raise UserError(f"the name of the log must contain {name}, because each job has its own log: {log}")
    return Call(options, name, numbers, log, command)


class Config:
    """Kaldi's config file: `command WORDS`, `option NAME=VALUE WORDS`, `default NAME=VALUE`; and our `export
    NAME...`.

    base: a config whose lines hold unless `file` has its own. UserError with the line when one is malformed.
    """

    def __init__(self, file: Path, base: "Config | None" = None):
        self.file = file
        self.command: list[str] = base.command if base else []
        self.exported: list[str] = [*(base.exported if base else EXPORTED)]
        self.default: dict[str, str] = {}
        self.option: dict[str, dict[str, list[str]]] = {}
        try:
            text = file.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as err:
            raise UserError(f"cannot be read ({err.strerror})", file=file) from None
        for number, line in enumerate(text.splitlines(), 1):
            try:
                if words := shlex.split(line, comments=True):
                    self._add(words)
            except ValueError as err:
                raise UserError(
                    str(err), file=file, line=number, hint="see slurm.conf beside slurm.sh"
                ) from None
        if base:  # lines of `file` replace those of `base`
            self.default = {k: v for k, v in base.default.items() if k not in self.option} | self.default
            self.option = base.option | self.option

    def _add(self, words: list[str]) -> None:
        kind, rest = words[0], words[1:]
        name, equals, value = rest[0].partition("=") if rest else ("", "", "")
        name = name.replace("-", "_")
        if kind == "command" and rest:
            self.command = rest
        elif kind == "export" and rest:
            self.exported += rest
        elif kind == "default" and name and equals and len(rest) == 1:
            self.default[name] = value
        elif kind == "option" and name and equals:
            self.option.setdefault(name, {})[value] = rest[1:]
        else:
            raise ValueError(
                "expected: command WORDS, option NAME=VALUE [WORDS], default NAME=VALUE or export NAME"
            )

    def submit(self, options: Mapping[str, str]) -> list[str]:
        """The sbatch command with its options. UserError for an option that the file does not define."""
        words = list(self.command)
        for name, value in {**self.default, **options}.items():
            if name in OWN:
                continue
            lines = self.option.get(name, {})
            added = lines.get(value, lines.get("*"))
            if added is None:
                known = " ".join(sorted(f"--{k.replace('_', '-')}" for k in {*self.option, *OWN}))
                hint = f'add a line "option {name}=* --... $0" to it; the options are: {known}'
                raise UserError(f"no option --{name.replace('_', '-')} {value}", file=self.file, hint=hint)
            words += [word.replace("$0", value) for word in added]
        return words

    def environment(self, env: Mapping[str, str], options: Mapping[str, str]) -> dict[str, str]:
        """The variables of `env` that the jobs get.

        CUDA_VISIBLE_DEVICES only without --gpu; else SLURM sets it.
        """
        found = {k: v for k, v in env.items() if any(fnmatchcase(k, pattern) for pattern in self.exported)}
        options = {**self.default, **options}
        if int(options.get("gpu", "0")) == 0 and "CUDA_VISIBLE_DEVICES" in env:
            found["CUDA_VISIBLE_DEVICES"] = env["CUDA_VISIBLE_DEVICES"]
        if "num_threads" in options:
            found["OMP_NUM_THREADS"] = options["num_threads"]
        return found


def read_config(named: str | None) -> Config:
    """The config named by --config, else by SPKV_SLURM_CONF, on top of utils/slurm.conf."""
    base = Config(Path(__file__).resolve().parents[2] / "utils/slurm.conf")
    return Config(Path(named), base) if named else base
