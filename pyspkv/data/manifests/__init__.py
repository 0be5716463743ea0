"""Lists of audio by other tools, to and from data directories: folders, tables, RTTM, lhotse, NeMo,
WeSpeaker, Arrow.

Every reader yields `rows.Row`s, and `rows.to_data_dir` makes a data directory from them.
"""
