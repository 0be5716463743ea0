"""Export a model to hand it over: network, config, calibration and a model card, without training state."""

import argparse

from pyspkv.base.errors import run


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m pyspkv.bin.export",
        description="Write OUT: weights (safetensors), config.yaml, calibration.json if there is one, and "
        "README.md, a model card in which you fill in the licence. pyspkv.load(OUT) reads it.",
    )
    p.add_argument("model", metavar="MODEL", help="experiment, phase or model folder, or DIR@best")
    p.add_argument("out", metavar="OUT", help="new folder")
    args = p.parse_args()
    from pyspkv.api.handover import export

    source = export(args.model, args.out)
    print(f"{args.out}: from {source}; fill in the licence and the data in {args.out}/README.md")


if __name__ == "__main__":
    run(main)
