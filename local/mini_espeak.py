"""Synthesize speech by espeak-ng (the wheel espeakng-loader), reproducibly.

espeak-ng's output depends on what the process has spoken before, and no call resets that state. `speak`
therefore forks a process for each call, so that its result depends only on its arguments.
"""

import ctypes
import os
import pickle
import re
from dataclasses import dataclass

import numpy as np

from pyspkv.base.errors import UserError

RATE = 22050
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_RETRIEVAL, _CHARS_UTF8 = 1, 1  # AUDIO_OUTPUT_RETRIEVAL, espeakCHARS_UTF8


@dataclass(frozen=True)
class Utterance:
    """A text and how to speak it. pitch and range: 0 to 99, 50 is normal; rate: words per minute."""

    text: str
    voice: str  # "en-us+f3"
    pitch: int = 50
    range: int = 50
    rate: int = 175


def variants() -> dict[str, str]:
    """Voice variants that can be reproduced, sorted: name -> "f" or "m".

    Left out are variants with breath noise (espeak's filters start from uninitialized memory, so each process
    sounds different) and effects that are not voices.
    """
    from pathlib import Path

    import espeakng_loader

    found = {}
    for file in sorted((Path(espeakng_loader.get_data_path()) / "voices" / "!v").iterdir()):
        lines = [line.split() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
        values = {words[0]: words[1:] for words in lines if words}
        breath = any(v != "0" for v in values.get("breath", []))
        if not breath and not re.match(r"(?i).*(robo|whisper|demonic|fast|croak)", file.name):
            low, high = (values.get("pitch") or ["82", "118"])[:2]
            female = values.get("gender", [""])[:1] == ["female"] or (float(low) + float(high)) / 2 > 145
            found[file.name] = "f" if female else "m"
    return found


def _speak_all(utterances: list[Utterance]) -> list[bytes]:
    """Speak in this process: samples of each utterance as bytes. UserError when espeak-ng fails."""
    import espeakng_loader

    lib = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path()
    if lib.espeak_Initialize(_RETRIEVAL, 0, data.encode(), 0) != RATE:
        raise UserError("espeak-ng does not start", file=data, hint="reinstall the wheel espeakng-loader")
    chunks: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples, num, _events):
        if num > 0:
            chunks.append(ctypes.string_at(samples, 2 * num))
        return 0

    lib.espeak_SetSynthCallback(collect)
    done = []
    for u in utterances:
        chunks.clear()
        if lib.espeak_SetVoiceByName(u.voice.encode()):
            raise UserError(f"espeak-ng has no voice {u.voice}", hint="reinstall the pinned espeakng-loader")
        for parameter, value in ((_RATE, u.rate), (_PITCH, u.pitch), (_RANGE, u.range)):
            lib.espeak_SetParameter(parameter, value, 0)
        text = u.text.encode()
        lib.espeak_Synth(text, len(text) + 1, 0, 0, 0, _CHARS_UTF8, None, None)
        lib.espeak_Synchronize()
        done.append(b"".join(chunks))
    return done


def speak(utterances: list[Utterance]) -> list[np.ndarray]:
    """Speak utterances: one int16 array [n] at 22050 Hz for each. The result depends only on the list.

    The caller must not use threads, because this forks. UserError when espeak-ng fails.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # in the child, which must never return into the caller's code
        os.close(read)
        try:
            result = _speak_all(utterances)
        except BaseException as err:
            result = str(err)
        try:
            with os.fdopen(write, "wb") as f:
                pickle.dump(result, f, protocol=5)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as f:
        raw = f.read()
    os.waitpid(pid, 0)
    if not raw:
        raise UserError("espeak-ng stopped while speaking", hint="run it again; existing files are kept")
        # These bytes come from our own child, so unpickling them is safe.
    result = pickle.loads(raw)
    if isinstance(result, str):
        raise UserError(result)
    return [np.frombuffer(b, np.int16) for b in result]
