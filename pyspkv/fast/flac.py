"""FLAC by dr_flac through private names of miniaudio: twice as fast as libsndfile, which is used if this
fails."""

import os

import numpy as np


class Flac:
    """A FLAC file open in dr_flac, with the methods of `soundfile.SoundFile` that the reader uses.

    Raises OSError when it is not a FLAC file.
    """

    def __init__(self, path: str):
        import miniaudio

        self._lib, self._ffi, self.name = miniaudio.lib, miniaudio.ffi, path
        self._flac = self._lib.ma_dr_flac_open_file(os.fsencode(path), self._ffi.NULL)
        if not self._flac:
            raise OSError(f"{path} is no FLAC file")
        self.samplerate, self.channels = self._flac.sampleRate, self._flac.channels
        self.frames = self._flac.totalPCMFrameCount  # 0 if the header does not say
        self.subtype = f"PCM_{self._flac.bitsPerSample}"

    def seekable(self) -> bool:
        return True

    def seek(self, frame: int) -> None:
        if not self._lib.ma_dr_flac_seek_to_pcm_frame(self._flac, frame):
            raise OSError(f"{self.name} is damaged (no frame {frame})")

    def read(self, frames: int, dtype: str = "float32") -> np.ndarray:
        x = np.empty((frames, self.channels) if self.channels > 1 else frames, dtype)
        buffer = self._ffi.from_buffer("float[]", x)
        return x[: self._lib.ma_dr_flac_read_pcm_frames_f32(self._flac, frames, buffer)]

    def close(self) -> None:
        self._lib.ma_dr_flac_close(self._flac)

    def __enter__(self) -> "Flac":
        return self

    def __exit__(self, *_) -> None:
        self.close()
