"""Rank a directory's dialogues by compactness, the most doubtful first, so that a person can check them."""

import argparse
import json
from pathlib import Path

from pyspkv.base.errors import UserError, run


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.score_dialogues",
        description="Write OUT: `dialogue utterances mean-cosine lowest-cosine weight`, the lowest mean first. The "
        "mean over all pairs shows a dialogue of two speakers; the lowest pair shows one utterance of another speaker.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--model", required=True, metavar="DIR[@best|last]", help="model folder")
    p.add_argument("--data", required=True, metavar="DIR", help="data directory with utt2dialogue")
    p.add_argument("--out", required=True, metavar="FILE")
    p.add_argument(
        "--max-utts", type=int, default=20, help="number of utterances used of each dialogue (the first ones)"
    )
    p.add_argument(
        "--shared-channel",
        action="store_true",
        help="pass each dialogue through one synthetic channel (see --mixed)",
    )
    p.add_argument(
        "--mixed",
        metavar="FILE",
        help="true `dialogue 0|1` lines: adds the AUC of compactness, with and without a synthetic channel, for "
        "diagnosis only",
    )
    p.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    p.add_argument("--allow-pipes", action="store_true", help="run `command |` entries of wav.scp")
    args = p.parse_args()
    if args.max_utts < 2:
        p.error("--max-utts must be at least 2")
    return args


def main() -> None:
    args = parse()

    from pyspkv.base import config as cfg
    from pyspkv.base.atomic import atomic_file
    from pyspkv.base.checkpoint import resolve_model
    from pyspkv.base.device import device as default_device
    from pyspkv.data.datadir import DataDir
    from pyspkv.data.tables import read_table
    from pyspkv.dialogue.rank import rank_dialogues
    from pyspkv.models.load import load_encoder
    from pyspkv.objectives.dialogue import DialogueConfig

    data = DataDir.read(args.data)
    if "utt2dialogue" not in data.utt_tables:
        raise UserError(
            "no such file",
            file=data.path / "utt2dialogue",
            hint="write `utt dialogue` lines, or make the directory from a log (sessionize.sh)",
        )
    mixed = read_table(args.mixed, "flag") if args.mixed else None
    device = default_device()
    raw = cfg.read(resolve_model(args.model).parent / "config.yaml").get("objective", {})
    ours = isinstance(raw, dict) and raw.get("name") == "dialogue"
    reject = (cfg.validate(DialogueConfig, raw, "objective") if ours else DialogueConfig()).reject
    encoder = load_encoder(args.model).to(device)
    how = {
        "reject": reject,
        "most": args.max_utts,
        "precision": args.precision,
        "allow_pipes": args.allow_pipes,
    }
    table, found = rank_dialogues(encoder, data, device, channel=args.shared_channel, mixed=mixed, **how)
    if mixed and not args.shared_channel:
        found["auc_channel"] = rank_dialogues(encoder, data, device, channel=True, mixed=mixed, **how)[1][
            "auc"
        ]
    with atomic_file(Path(args.out), own=True) as f:
        f.writelines(f"{name} {n} {mean:.4f} {low:.4f} {w:.4f}\n" for name, n, mean, low, w in table)
    print(
        f"{args.out}: {len(table)} dialogues, the least compact first: {' '.join(row[0] for row in table[:3])}"
    )
    if found:
        with atomic_file(Path(f"{args.out}.json"), own=True) as f:
            json.dump(
                {k: v for k, v in found.items() if v == v}, f, indent=1
            )  # leaves out NaN: if no dialogue is mixed there is no AUC
        print(
            f"by the truth: AUC of the mean cosine {found['auc']:.4f}, of the lowest {found['auc_low']:.4f}; "
            f"mean weight of mixed dialogues / of clean ones {found['weight_ratio']:.3f} "
            f"({found['mixed']} mixed of {len(table)})"
        )


if __name__ == "__main__":
    run(main)
