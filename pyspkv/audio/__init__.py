"""Reading audio: from an entry of wav.scp to samples and features."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyspkv.audio.reader import SAMPLE_RATE, AudioReader

__all__ = ["SAMPLE_RATE", "AudioReader"]


def __getattr__(name: str):
    """Import the reader only when one of its names is used; other modules of this package need much less."""
    if name not in __all__:
        raise AttributeError(f"module 'pyspkv.audio' has no attribute {name!r}")
    from pyspkv.audio import reader

    return getattr(reader, name)
