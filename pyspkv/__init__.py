"""Speaker verification from audio with no, or few, speaker labels."""

import sys

__version__ = "0.1.0"

if getattr(sys, "argv", [])[:1] == [
    "-m"
]:  # `python -m pyspkv.bin.X` is being looked up: X's own imports come next
    from pyspkv.errors import guard

    guard()
