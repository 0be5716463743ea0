"""Speaker verification from audio with no, or few, speaker labels.

    import pyspkv

    model = pyspkv.load("exp/finetune")        # an experiment, a phase of it, or a model folder
    model.embed("a.wav")                       # float32 [D]; of a list [N, D]
    model.verify("a.wav", "b.wav")             # score; llr and decision where the model is calibrated
    pyspkv.cluster(model.embed(paths))         # int64 [N], who spoke

Nothing heavy is imported before it is used.
"""

import sys

__version__ = "0.2.0.dev0"
__all__ = ["Model", "SpeakerClustering", "Verification", "cluster", "load"]

TYPE_CHECKING = False  # as type checkers know it; to import typing takes longer than all of this
if TYPE_CHECKING:
    from pyspkv.api.speaker_clustering import SpeakerClustering, cluster
    from pyspkv.api.speaker_model import Model, Verification, load

_PLACES = {
    "Model": "api.speaker_model",
    "Verification": "api.speaker_model",
    "load": "api.speaker_model",
    "SpeakerClustering": "api.speaker_clustering",
    "cluster": "api.speaker_clustering",
}


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module 'pyspkv' has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = getattr(import_module(f"pyspkv.{_PLACES[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if getattr(sys, "argv", [])[:1] == [
    "-m"
]:  # `python -m pyspkv.bin.X` is being looked up: X's own imports come next
    from pyspkv.base.errors import guard

    guard()
