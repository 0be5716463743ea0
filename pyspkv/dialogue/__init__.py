"""Dialogues: make them from logs, simulate them, rank them by compactness."""
