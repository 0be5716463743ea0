"""Show what each training of a recipe will do and cost; --fit makes the settings fit the corpus."""

import argparse
import sys
from pathlib import Path

from pyspkv.base.errors import UserError, natural, run


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.plan",
        description="Show steps, crops, hours of audio, minutes and memory of every training of a recipe: a few "
        "steps of each are timed on this machine. With --fit, first make the configs fit the corpus.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("data", metavar="DIR", help="data directory of the training")
    p.add_argument("--conf", required=True, metavar="DIR", help="folder of the recipe's configs")
    p.add_argument("--num-rounds", type=natural, default=2, help="rounds of clustering and training")
    p.add_argument(
        "--fit",
        action="store_true",
        help="first rewrite epochs, batch_size and crops in CONF to fit the corpus",
    )
    p.add_argument("--no-timing", action="store_true", help="time no training steps and print no table")
    p.add_argument(
        "--allow-pipes", action="store_true", help="run entries of wav.scp that are commands (`... |`)"
    )
    return p.parse_args()


def fit(conf: Path, num_utts: int, seconds: list[float]) -> None:
    """Rewrite the configs that do not fit the corpus, and print what to give for --num-clusters."""
    from pyspkv.base.atomic import atomic_file
    from pyspkv.base.foreign import read_text
    from pyspkv.data import plan

    for file in sorted(conf.rglob("*.yaml")):
        text = read_text(file, 1 << 20)
        new = plan.fitted(text, file.stem, num_utts, seconds)
        if new == text:
            continue
        with atomic_file(file) as f:
            f.write(new)
        lines = [line for line in new.splitlines() if line not in text.splitlines()]
        print(f"{file}: {'; '.join(line.strip() for line in lines)}")
    print(f"num_clusters={plan.clusters(num_utts)}")


def main() -> None:
    args = parse()
    conf = Path(args.conf)
    if not conf.is_dir():
        raise UserError("no such folder", file=conf, hint="give --conf the recipe's folder of configs")
    from pyspkv.base.atomic import command_line
    from pyspkv.data.datadir import DataDir
    from pyspkv.report import warnings

    data = DataDir.read(args.data)
    seconds = warnings.seconds_of(data, args.allow_pipes)
    if not seconds:
        raise UserError(
            "no utterance's duration can be told",
            file=data.path,
            hint=command_line("python", "-m", "pyspkv.bin.datadir", "summary", str(data.path)),
        )
    hours = len(data.utts) * sum(seconds) / len(seconds) / 3600
    median = sorted(seconds)[len(seconds) // 2]
    print(f"{len(data.utts)} utterances, about {hours:.2f} hours, median {median:.2f} s")
    if args.fit:
        fit(conf, len(data.utts), seconds)
    for sign in warnings.of_corpus("corpus", len(data.utts)):
        print(sign, file=sys.stderr)
    if args.no_timing:
        return
    from pyspkv.data.plan import PER_CLUSTER
    from pyspkv.experiments import plan

    stages = []
    for name, files in plan.stages_of(conf, args.num_rounds):
        print(f"timing {name}", file=sys.stderr)
        stages.append(plan.plan(name, files, data, seconds, max(2, len(data.utts) // PER_CLUSTER)))
    print("\n".join(plan.table(stages)))
    for stage in stages:
        for sign in warnings.of_steps(stage.name, stage.steps) + warnings.of_crops(
            stage.name, stage.crop_seconds, seconds
        ):
            print(sign)


if __name__ == "__main__":
    run(main)
