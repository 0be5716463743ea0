"""Write what later steps need from finished trainings: a link to the best model, a threshold, step counts."""

import argparse
import math
from pathlib import Path

from pyspkv.base.errors import UserError, run


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m pyspkv.bin.query", description=__doc__)
    commands = p.add_subparsers(dest="command", required=True)
    sub = commands.add_parser(
        "best", help="link the model folder with the lowest dev EER (the first, if several are equal)"
    )
    sub.add_argument("--link", required=True, type=Path, metavar="LINK", help="the link to make")
    sub.add_argument("models", nargs="+", type=Path, metavar="DIR")
    sub = commands.add_parser(
        "threshold", help="write a config: a gate's threshold from a model's mean confidence"
    )
    sub.add_argument("--factor", type=float, default=0.9, help="factor on the highest epoch mean")
    sub.add_argument("--out", required=True, type=Path, metavar="YAML")
    sub.add_argument("model", type=Path, metavar="DIR", help="model folder of FixMatch")
    sub = commands.add_parser(
        "steps",
        help="write a config: train on the labeled part alone for as many steps as with the unlabeled part",
    )
    sub.add_argument(
        "--config", required=True, nargs="+", metavar="YAML", help="configs of the training with both"
    )
    sub.add_argument("--labeled-data", required=True, type=Path, metavar="DIR")
    sub.add_argument("--unlabeled", required=True, type=Path, metavar="DIR")
    sub.add_argument("--out", required=True, type=Path, metavar="YAML")
    args = p.parse_args()
    if args.command == "threshold" and not math.isfinite(args.factor):
        p.error("--factor must be a finite number")
    return args


def dev_eer(model: Path) -> float:
    """The lowest dev EER of a training, in percent. UserError: it had no dev list."""
    from pyspkv.base import checkpoint

    eer = checkpoint.state(checkpoint.resolve_model(model)).get("best_eer")
    if eer is None:
        raise UserError(
            "was trained without a dev list", file=model, hint="train with --dev and --dev-trials"
        )
    return eer


def link_best(models: list[Path], link: Path) -> None:
    """Make `link` a relative link to the model with the lowest dev EER.

    UserError: `link` exists and is not a link.
    """
    import os

    best = min(models, key=dev_eer)
    if link.exists() and not link.is_symlink():
        raise UserError("is not a link", file=link, hint="give another --link")
    link.parent.mkdir(parents=True, exist_ok=True)
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.symlink_to(os.path.relpath(best, link.parent))
    os.replace(new, link)
    print(f"{link}: {best}, which has the lowest dev EER")


def peak(model: Path, key: str) -> float:
    """The highest of the epoch means of `key` in a training's log. UserError: no epoch has it."""
    from pyspkv.base import foreign
    from pyspkv.report.experiment import epochs_of

    values = [r[key] for r in epochs_of(model.parent, model.name) if foreign.is_number(r.get(key))]
    if not values:
        raise UserError(f"no epoch has '{key}'", file=model / "train.jsonl", hint="give a FixMatch model")
    return max(values)


def labeled_steps(config, labeled: int, unlabeled: int) -> tuple[int, int]:
    """(batch size, steps per epoch) for training on the labeled part alone.

    A batch is as large as the unlabeled share of the batch of both parts, but has at most all labeled
    utterances. An epoch has as many steps as one pass over the unlabeled part.
    """
    share = config.batch_size - min(labeled, config.sampler.labeled_batch_size)
    return min(labeled, share), unlabeled // share


def main() -> None:
    args = parse()
    if args.command == "best":
        link_best(args.models, args.link)
        return
    from pyspkv.base.atomic import atomic_file

    if args.command == "threshold":
        text = f"objective.gate.threshold: {args.factor * peak(args.model, 'confidence'):.6g}\n"
    else:
        from pyspkv.base import config as cfg
        from pyspkv.data.datadir import DataDir
        from pyspkv.train.config import TrainConfig

        sizes = [len(DataDir.read(d, need_wav=False).utts) for d in (args.labeled_data, args.unlabeled)]
        batch, steps = labeled_steps(cfg.load(TrainConfig, args.config), *sizes)
        text = f"batch_size: {batch}\nsampler: {{name: fixed_steps, steps: {steps}}}\n"
    with atomic_file(args.out) as f:
        f.write(text)
    print(f"{args.out}: {', '.join(text.splitlines())}")


if __name__ == "__main__":
    run(main)
