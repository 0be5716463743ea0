"""The installed package: licences, version ranges, the wheel, the command, start-up time, a broken
torchaudio.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# packages whose metadata names no licence, or contains its text: see NOTICE
BY_HAND = {"kaldiio", "pyroomacoustics"}
HIDDEN_GPL = {"espeakng-loader"}  # contains libespeak-ng, which its metadata does not mention
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return {plain(name): version for name, version in (line.split("==") for line in lines if line)}


def needs(reqs: list[str]) -> dict[str, Requirement]:
    return {plain(r.name): r for r in map(Requirement, reqs)}


# ---- ranges and licences ----------------------------------------------------------------------------------------
def test_pins_lie_in_the_ranges_and_are_all_there():
    extras = PROJECT["optional-dependencies"]
    for file, ranges in (
        ("requirements.txt", needs(PROJECT["dependencies"] + extras["mini"])),
        ("requirements-dev.txt", needs(extras["dev"])),
        ("requirements-docs.txt", needs(extras["docs"])),
    ):
        pinned = pins(file)
        assert pinned.keys() == ranges.keys()
        for name, version in pinned.items():
            span = ranges[name].specifier
            assert span.contains(version), f"{name} {version} is not {span}"
            assert {"<", ">="} == {s.operator for s in span}, f"{name}: {span} is no range"
    assert set(extras["docs"]) <= set(extras["dev"])
    assert pins("requirements-docs.txt").items() <= pins("requirements-dev.txt").items()


def closure(reqs: list[str]) -> set[str]:
    """These installed packages with all their dependencies."""
    found, todo = set(), [Requirement(r).name for r in reqs]
    while todo:
        name = plain(todo.pop())
        if name not in found:
            found.add(name)
            below = map(Requirement, importlib.metadata.requires(name) or [])
            todo += [r.name for r in below if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def licence(name: str) -> str:
    """The licence that the metadata names; "" if it names none."""
    md = importlib.metadata.metadata(name)
    named = [md.get("License-Expression") or "", (md.get("License") or "").partition("\n")[0]]
    named += [c for c in md.get_all("Classifier", []) if c.startswith("License ::") and "Lesser" not in c]
    return " ".join(named).strip()


def is_gpl(text: str) -> bool:
    """Whether a licence is GPL or AGPL: in full or abbreviated, not LGPL, not with the exception for compiler
    libraries.
    """
    text = re.sub(r"(?i)lesser general public|lgpl|gpl-?[\w.+-]* with gcc-exception", "", text)
    return re.search(r"(?i)gpl|general public license", text) is not None


def test_no_gpl_package_among_the_core_dependencies():
    core = closure(PROJECT["dependencies"])
    assert len(core) > 40 and {"torch", "numpy", "cffi"} <= core
    for name in core:
        assert licence(name) or name in BY_HAND, f"{name}: licence unknown, look it up and add it to NOTICE"
        assert not is_gpl(licence(name)) and name not in HIDDEN_GPL, f"{name}: {licence(name)}"
    assert needs(PROJECT["optional-dependencies"]["mini"]).keys() == HIDDEN_GPL


@pytest.mark.parametrize(
    "text",
    ["GPL-3.0-or-later", "GPLv3", "License :: OSI Approved :: GNU General Public License (GPL)", "AGPL-3.0"],
)
def test_gpl_is_known_by_its_names(text):
    assert is_gpl(text) and not is_gpl("LGPL-2.1-or-later MIT") and not is_gpl("BSD-3-Clause")


def test_notice_names_the_licence_of_each_dependency():
    named = dict(re.findall(r"^  ([\w.-]+): (.+)$", (ROOT / "NOTICE").read_text(), re.MULTILINE))
    extras = PROJECT["optional-dependencies"]
    want = needs(PROJECT["dependencies"] + extras["mini"] + extras["dev"])
    assert {plain(name) for name in named} == want.keys()
    assert "GPL-3.0" in named["espeakng-loader"]
    for name in ("soxr", "torch", "pydantic", "PyYAML"):  # as the metadata spells it
        assert named[name] in licence(name)


def test_licence_and_citation():
    text = (ROOT / "LICENSE").read_text()
    assert text.lstrip().startswith("Apache License") and "END OF TERMS AND CONDITIONS" in text
    import yaml

    import pyspkv

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["license"] == PROJECT["license"] == "Apache-2.0"
    assert cited["version"] == pyspkv.__version__
    assert pyspkv.__version__.partition(".dev")[0] in (ROOT / "CHANGELOG.md").read_text()


# ---- the wheel and the command ----------------------------------------------------------------------------------
def sources(folder: Path) -> Path:
    """A copy to build in, because building writes into it, with top folders that setuptools might take for
    packages.
    """
    import shutil

    shutil.copytree(ROOT / "pyspkv", folder / "pyspkv", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("egs", "local", "steps", "tests", "benchmarks"):
        (folder / name).mkdir()
        (folder / name / "module.py").write_text("")
    return folder


def run(*words, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(w) for w in words], env={**ENV, **env}, capture_output=True, text=True, cwd="/"
    )


def test_wheel_in_a_fresh_venv(tmp_path):
    (tmp_path / "src").mkdir()
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index"]
    built = run(*pip, "wheel", *options, "--no-build-isolation", "-w", tmp_path, sources(tmp_path / "src"))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {n.split("/")[0] for n in names if ".dist-info/" not in n}
    assert tops == {"pyspkv"} and "pyspkv/py.typed" in names and "pyspkv/clustering/kmeans.py" in names
    assert {n.rsplit("/", 1)[1] for n in names if "/licenses/" in n} == {"LICENSE", "NOTICE"}

    venv = tmp_path / "venv"
    assert run(sys.executable, "-m", "venv", "--without-pip", venv).returncode == 0
    done = run(*pip, "--python", venv / "bin/python", "install", *options, wheel)
    assert done.returncode == 0, done.stderr
    site = venv / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    command = venv / "bin/pyspkv"
    where = run(venv / "bin/python", "-c", "import pyspkv; print(pyspkv.__file__)", PYTHONPATH="")
    assert where.stdout.strip() == str(site / "pyspkv/__init__.py")
    listed = run(command, "--help", PYTHONPATH="")
    assert listed.returncode == 0 and re.search(r"^  verify +\w", listed.stdout, re.MULTILINE)
    same = [run(command, "metrics", "--help", PYTHONPATH="")]
    same += [run(venv / "bin/python", "-m", "pyspkv.bin.metrics", "--help", PYTHONPATH="")]
    assert same[0].stdout == same[1].stdout != "" and same[0].returncode == 0


def test_command_is_the_entry_point():
    main = [sys.executable, "-m", "pyspkv.bin.main"]
    listed = run(*main, "--help").stdout
    for file in (ROOT / "pyspkv/bin").glob("[a-z]*.py"):
        if file.stem != "main":
            assert re.search(rf"^  {file.stem} +\S.{{20}}", listed, re.MULTILINE), file.stem
    for word in ("gate-curves", "gate_curves"):
        done = run(*main, word, "--help")
        assert done.returncode == 0 and "usage: python -m pyspkv.bin.gate_curves" in done.stdout
    missing = run(*main, "metrics", "--scores", "a", "--trials", "no/such")
    direct = run(sys.executable, "-m", "pyspkv.bin.metrics", "--scores", "a", "--trials", "no/such")
    assert missing.returncode == direct.returncode == 1
    assert missing.stderr == direct.stderr and missing.stderr.startswith("error: ")
    wrong = run(*main, "extrct")
    assert (
        wrong.returncode == 1 and "hint: pyspkv extract" in wrong.stderr and "Traceback" not in wrong.stderr
    )
    assert run(*main).returncode == 2


def test_nothing_heavy_is_imported_before_it_is_used():
    code = (
        "import sys, pyspkv; print(sorted({m.partition('.')[0] for m in sys.modules} & {HEAVY}), dir(pyspkv))"
    )
    heavy = "{'numpy', 'torch', 'scipy', 'sklearn', 'typing', 'yaml', 'argparse'}"
    out = run(sys.executable, "-S", "-c", code.replace("{HEAVY}", heavy)).stdout
    assert out.startswith("[] ") and "'load'" in out and "'cluster'" in out
    timed = [run(sys.executable, "-X", "importtime", "-c", "import pyspkv").stderr for _ in range(3)]
    micro = [int(re.search(r"\| +(\d+) \| pyspkv$", text, re.MULTILINE)[1]) for text in timed]
    assert min(micro) < 50_000


# ---- torchaudio of CUDA beside a torch without -------------------------------------------------------------------
BROKEN = """
import sys
import numpy as np
import torch
from pyspkv.base import config as cfg, guarded
from pyspkv.models.registry import EncoderConfig
from test_package import SIZES
try:
    import torchaudio
except OSError:
    pass
else:
    raise SystemExit("it is not broken")
out = {}
for name, size in SIZES.items():
    torch.manual_seed(0)
    encoder = cfg.build(cfg.validate(EncoderConfig, size)).eval()
    wave = torch.linspace(-1, 1, 16000).sin()[None] * torch.linspace(0, 900, 16000).sin()
    with torch.no_grad():
        out[name] = encoder(wave, torch.tensor([16000])).numpy()
from transformers.utils import is_torchaudio_available
assert guarded.torchaudio() is None and not is_torchaudio_available()
np.savez(sys.argv[1], **out)
"""
SIZES = {
    "ecapa": {
        "name": "ecapa",
        "channels": 8,
        "mfa_channels": 12,
        "embed_dim": 6,
        "se_channels": 4,
        "n_mels": 20,
    },
    "wavlm": {
        "name": "wavlm",
        "layers": 2,
        "dim": 32,
        "heads": 4,
        "ffn": 64,
        "conv_dim": 16,
        "embed_dim": 8,
        "pos_conv_kernel": 16,
        "pos_conv_groups": 4,
        "mhfa_heads": 4,
        "mhfa_dim": 8,
    },
}


def test_models_work_beside_a_broken_torchaudio(tmp_path):
    """A stand-in fails like torchaudio for CUDA without CUDA; the filterbanks give the same digits."""
    import numpy as np
    import torch

    from pyspkv.base import config as cfg
    from pyspkv.models.registry import EncoderConfig

    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio/__init__.py").write_text("from . import part\nimport torchaudio.lib_of_cuda\n")
    (tmp_path / "torchaudio/part.py").write_text("")
    (tmp_path / "torchaudio/lib_of_cuda.py").write_text("raise OSError('libcudart.so.13: cannot open')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "tests")])
    done = run(sys.executable, "-c", BROKEN, tmp_path / "x.npz", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    encoder = cfg.build(cfg.validate(EncoderConfig, SIZES["ecapa"])).eval()
    wave = torch.linspace(-1, 1, 16000).sin()[None] * torch.linspace(0, 900, 16000).sin()
    with torch.no_grad():
        want = encoder(wave, torch.tensor([16000])).numpy()
    with np.load(tmp_path / "x.npz") as found:
        np.testing.assert_allclose(found["ecapa"], want, rtol=1e-5, atol=1e-6)
        assert found["wavlm"].shape == (1, 8) and np.isfinite(found["wavlm"]).all()


@pytest.mark.parametrize("shape", [(80, 512, 20.0, 7600.0), (40, 512, 0.0, 8000.0), (23, 1024, 64.0, 7000.0)])
def test_own_mel_filters_are_torchaudios_bit_for_bit(shape):
    import torch
    from torchaudio.compliance.kaldi import get_mel_banks

    from pyspkv.base.guarded import mel_banks, plain_mel_banks

    want = get_mel_banks(*shape[:2], 16000.0, *shape[2:], 100.0, -500.0, 1.0)[0]
    assert torch.equal(plain_mel_banks(*shape), want) and torch.equal(mel_banks(*shape), want)


# ---- by pip alone -----------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_venv_made_by_pip_alone(tmp_path):
    """No setup_env.sh: pip install, then the command and three lines of Python on a WavLM model."""
    import numpy as np
    import soundfile
    import torch

    from pyspkv.base import checkpoint
    from pyspkv.base import config as cfg
    from pyspkv.models.registry import EncoderConfig

    (tmp_path / "src").mkdir()
    venv, src = tmp_path / "venv", sources(tmp_path / "src")
    assert run(sys.executable, "-m", "venv", venv).returncode == 0
    done = run(venv / "bin/pip", "install", "-q", "-c", src / "requirements.txt", src, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    config = cfg.validate(EncoderConfig, SIZES["wavlm"])
    checkpoint.save_import(tmp_path / "model", cfg.build(config), config, {})
    (tmp_path / "audio").mkdir()
    for name, rate in (("a.wav", 16000), ("b.flac", 8000), ("c.ogg", 44100), ("d.mp3", 22050)):
        noise = 0.1 * np.random.default_rng(0).standard_normal(2 * rate)
        soundfile.write(tmp_path / "audio" / name, noise, rate)
    command, audio = venv / "bin/pyspkv", tmp_path / "audio"
    assert "extract" in run(command, "--help", PYTHONPATH="").stdout
    out = tmp_path / "x.npz"
    done = run(
        command, "extract", "--audio", audio, "--model", tmp_path / "model", "--out", out, PYTHONPATH=""
    )
    assert done.returncode == 0 and np.load(out)["x"].shape == (4, 8), done.stderr
    done = run(
        command, "verify", "--model", tmp_path / "model", audio / "a.wav", audio / "b.flac", PYTHONPATH=""
    )
    assert done.returncode == 0 and "score" in done.stdout, done.stderr
    code = "import pyspkv, sys; m = pyspkv.load(sys.argv[1]); print(m.verify(*sys.argv[2:]).score)"
    words = [venv / "bin/python", "-c", code, tmp_path / "model", audio / "a.wav", audio / "a.wav"]
    assert float(run(*words, PYTHONPATH="").stdout) == pytest.approx(1, abs=1e-5)
