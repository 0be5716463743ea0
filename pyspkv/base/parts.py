"""--part K/N and --merge N: argparse types of work that is done in parts."""

import argparse
import re

MAX_PARTS = 500  # each may hold a file open while they are joined


def parts(text: str) -> int:
    """argparse type: a number of parts."""
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text, re.ASCII) or int(text) > MAX_PARTS:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number from 1 to {MAX_PARTS}")
    return int(text)


def part(text: str) -> tuple[int, int]:
    """argparse type: K/N with 1 <= K <= N."""
    k, _, n = text.partition("/")
    found = parts(k), parts(n)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"there is no part {k} of {n}")
    return found
