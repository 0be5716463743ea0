"""Export a model without its training state: network, config, calibration and a model card in one folder."""

import sys
from pathlib import Path

import yaml

from pyspkv.base.atomic import command_line
from pyspkv.base.errors import UserError
from pyspkv.base.foreign import read_json, read_text

HINT = "copy the model folder again, or train it again"


def export(model: str, out: str | Path) -> str:
    """Write the folder `out`, which `pyspkv.load`, `--init` and every --model accept; return the source model
    folder.

    model: as in `pyspkv.load`. UserError when there is no such model, or `out` exists and is not empty.
    """
    from pyspkv.api.speaker_model import find_model
    from pyspkv.base import checkpoint
    from pyspkv.models.load import encoder_config, load_encoder, merged_config

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("exists and is not empty", file=out, hint="give another folder")
    name = find_model(model)
    folder = checkpoint.resolve_model(name)
    encoder, config = load_encoder(name), merged_config(encoder_config(folder))
    run = folder.parent / "run.json"
    trained = read_json(run, hint=HINT) if run.is_file() else {}
    weights = checkpoint.digest(name)
    texts = {"README.md": card(folder, sum(p.numel() for p in encoder.parameters()), trained, weights)}
    calibration = folder.parent / "calibration.json"
    if calibration.is_file():
        from pyspkv.score.calibration import Calibration

        Calibration.read(calibration)  # raises UserError if it is not valid
        texts["calibration.json"] = read_text(calibration, 1 << 16, HINT)
    record = {"command": sys.argv, "source": name, "source_sha256": weights, "trained": trained}
    checkpoint.save_import(out, encoder, config, record, texts)
    return name


def card(folder: Path, parameters: int, trained: dict, weights: str) -> str:
    """The model card of a checkpoint: Markdown with the YAML header that model hubs read."""
    from pyspkv import __version__
    from pyspkv.base import config as cfg
    from pyspkv.base.checkpoint import state
    from pyspkv.models.load import encoder_config

    model = folder.parent
    encoder, saved = cfg.dump(encoder_config(folder)), state(folder)
    phase = model.resolve().parent.name if model.resolve().name == "model" else model.resolve().name
    command = trained.get("command")
    words = command if isinstance(command, list) and all(isinstance(w, str) for w in command) else []
    facts = {
        "Encoder": f"{encoder.get('name')}, {parameters:,} parameters",
        "Phase": phase,
        "Trained on": f"{_of(trained, 'num_utterances')} utterances, {_of(trained, 'num_classes')} training classes",
        "Training": f"step {saved.get('step')}, {'finished' if saved.get('done', True) else 'NOT FINISHED'}",
        "Commit": _of(trained, "git"),
        "Versions": ", ".join(f"{k} {_of(trained, k)}" for k in ("pyspkv", "torch", "python")),
        "Exported by": f"pyspkv {__version__}",
        "Weights it was exported from (SHA-256)": weights,
    }
    lines = ["---", "license: # to be filled in by whoever hands it over", "library_name: pyspkv", "tags:"]
    lines += ["- speaker-verification", "---", "", "# Speaker-verification model", ""]
    lines += [f"- {key}: {_plain(value)}" for key, value in facts.items()]
    lines += ["", "## Use", "", "```python", "import pyspkv", ""]
    lines += [
        'model = pyspkv.load("this folder")',
        'model.embed("a.wav")',
        'model.verify("a.wav", "b.wav")',
        "```",
    ]
    lines += ["", "Input: 16 kHz mono speech; files of other rates and channels are converted.", ""]
    lines += ["## Command", "", *_fenced(command_line(*words) if words else "unknown")]
    lines += ["", "## Results", "", *_scores(model.parent if model.name == "model" else model)]
    lines += ["", "## Encoder config", "", *_fenced(yaml.safe_dump(encoder, sort_keys=False).rstrip())]
    lines += [
        "",
        "## Licence, data and limits",
        "",
        "To be filled in: whose speech it was trained on and under which",
    ]
    lines += ["terms, what it is meant for, and what it is not.", ""]
    return "\n".join(lines)


def _of(found: dict, key: str) -> str:
    value = found.get(key)
    return str(value) if isinstance(value, (str, int)) and value != "" else "unknown"


def _plain(text: str) -> str:
    """`text` in one line, with characters that Markdown or a terminal would interpret replaced by `?`."""
    return "".join(c if c.isprintable() and c not in "`<>[]|" else "?" for c in str(text))[:300]


def _fenced(text: str) -> list[str]:
    """A code block whose fence is longer than any run of backticks in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, *text.splitlines(), fence]


def _scores(phase: Path) -> list[str]:
    """A Markdown table of PHASE/score/*.json, as written by bin.evaluate."""
    rows = []
    for file in sorted((phase / "score").glob("*.json")):
        found = read_json(file, hint="score it again")
        eer, dcf = found.get("eer"), found.get("min_dcf_0.01")
        if isinstance(eer, (int, float)):
            low, high = found.get("eer_ci_low"), found.get("eer_ci_high")
            between = (
                f"{low:.2f} to {high:.2f}" if all(isinstance(v, (int, float)) for v in (low, high)) else "-"
            )
            shown = f"{dcf:.3f}" if isinstance(dcf, (int, float)) else "-"
            rows.append(f"| {_plain(file.stem)} | {eer:.2f} | {between} | {shown} |")
    if not rows:
        return ["Not scored."]
    return ["| trials | EER % | 95 % interval | minDCF(0.01) |", "|---|---|---|---|", *rows]
