"""Speaker verification from audio with no, or few, speaker labels."""

__version__ = "0.1.0"
