"""Kaldi data directories, their tables, trials and arks."""
