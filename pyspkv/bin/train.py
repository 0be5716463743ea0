"""Train an encoder: `python -m pyspkv.bin.train --config YAML --data DIR --exp DIR`. A rerun resumes.

SIGTERM and SIGUSR1 end it after the step that it is in, with a checkpoint and exit code 75: the same command goes on.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from pyspkv.base.errors import UserError, printable, run
from pyspkv.base.processes import REQUEUE, is_first

# Set before torch is loaded: a thread that waits for others then sleeps. By default it spins, and on a busy
# machine an epoch takes several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if not is_first():  # of several processes only one prints the message
            sys.exit(2)
        super().error(message)


def parse() -> argparse.Namespace:
    parser = Parser(prog="python -m pyspkv.bin.train", description=__doc__)
    parser.add_argument(
        "--config",
        required=True,
        nargs="+",
        metavar="YAML",
        help="config file, may be repeated: a later file overrides an earlier one",
    )
    parser.add_argument("--data", metavar="DIR", help="data directory; utt2spk holds the classes")
    parser.add_argument(
        "--unlabeled", metavar="DIR", help="second data directory of semi-supervised objectives"
    )
    parser.add_argument("--dev", metavar="DIR", help="data directory of dev speakers, none of them in --data")
    parser.add_argument(
        "--dev-trials", metavar="FILE", help="trials over --dev; the lowest EER becomes @best"
    )
    parser.add_argument(
        "--patience",
        type=int,
        default=0,
        metavar="N",
        help="stop after N epochs in a row without a lower dev EER",
    )
    parser.add_argument("--exp", metavar="DIR", help="model folder; a rerun resumes the training in it")
    parser.add_argument(
        "--init", metavar="DIR[@best|last]", help="start from the encoder of this model, with a new head"
    )
    parser.add_argument(
        "--keep-head",
        action="store_true",
        help="with --init: also keep its heads and its gate; the labels must be the same",
    )
    parser.add_argument(
        "--labels-out",
        metavar="DIR",
        help="write a data directory with the final labels (for objectives that change labels)",
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override config keys"
    )
    parser.add_argument(
        "--set-known",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override config keys that the chosen encoder, objective, ... has; others are passed over. --set wins",
    )
    parser.add_argument("--print-config", action="store_true", help="print the complete config and exit")
    parser.add_argument(
        "--check",
        action="store_true",
        help="build the encoder with the weights that it starts from, and exit: no data is read, nothing is written",
    )
    args = parser.parse_args()
    if not (args.print_config or args.check) and (args.data is None or args.exp is None):
        parser.error("--data and --exp are required")
    if (args.dev is None) != (args.dev_trials is None):
        parser.error("--dev and --dev-trials go together")
    if args.keep_head and args.init is None:
        parser.error("--keep-head needs --init")
    if args.patience and args.dev is None:
        parser.error("--patience needs --dev and --dev-trials")
    return args


def warn(text: str) -> None:
    if is_first():
        print(printable(f"warning: {text}"), file=sys.stderr)


def main() -> int:
    args = parse()
    from pyspkv.base import config as cfg
    from pyspkv.base import distributed
    from pyspkv.data.datadir import DataDir
    from pyspkv.report import warnings
    from pyspkv.train.config import load_config
    from pyspkv.train.trainer import Trainer, check_start

    config = load_config(args.config, args.set, args.set_known, warn)
    if args.print_config:
        print(cfg.to_yaml(config) if is_first() else "", end="")
        return 0
    if args.check:
        check_start(config, args.init)
        for sign in warnings.of_encoder("check", config.encoder):
            print(sign, file=sys.stderr)
        print(f"can start: {config.encoder.name}, {config.objective.name}, {config.epochs} epochs")
        return 0
    data = DataDir.read(args.data)
    unlabeled, dev = (DataDir.read(d) if d else None for d in (args.unlabeled, args.dev))
    if args.dev_trials and not Path(args.dev_trials).is_file():
        raise UserError("no such trials file", file=args.dev_trials)
    model = Path(args.exp)
    trainer = Trainer(
        config,
        data,
        model,
        unlabeled=unlabeled,
        dev=dev,
        dev_trials=args.dev_trials,
        init=args.init,
        keep_head=args.keep_head,
        labels_out=args.labels_out and Path(args.labels_out),
        patience=args.patience,
    )
    if is_first() and not trainer.finished:
        for sign in warnings.at_start(trainer):
            print(sign, file=sys.stderr)
    trainer.run()
    if distributed.rank() == 0 and not trainer.stopped:
        print(f"model: {model}")
    distributed.close()
    return REQUEUE if trainer.stopped else 0


if __name__ == "__main__":
    run(main)
