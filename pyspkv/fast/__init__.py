"""Tricks of the platform that make something faster. Each has a plain way beside it, which is taken where the trick is
not to be had; nothing but speed follows from which one it is."""
