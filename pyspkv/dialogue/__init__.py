"""Dialogues: sessionize, simulate, rank by compactness."""
