"""Other people's lists of audio, to and from data directories: folders, tables, RTTM, lhotse, NeMo, WeSpeaker, Arrow.

Every reader gives `rows.Row`s; `rows.to_data_dir` makes a data directory of them.
"""
