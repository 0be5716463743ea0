"""Encoders: a waveform in, an embedding out."""
