"""The subcommands of `pyspkv datadir`. Each is a module with `add_arguments(parser)` and `run(args)`.

A module may also have `tidy(words)`, which rewrites its command line before argparse reads it. Only the
module of the subcommand that was given is imported.
"""

# Subcommand -> (module in this package, its help text).
COMMANDS = {
    "from-folder": ("from_folder", "a folder of audio files becomes a data directory"),
    "from-csv": ("from_csv", "a table (CSV, TSV) that names audio files becomes a data directory"),
    "from-jsonl": ("from_jsonl", "JSON lines that name audio files become a data directory"),
    "from-rttm": ("from_rttm", "diarized recordings become a data directory with segments"),
    "from-lhotse": ("from_lhotse", "manifests of lhotse become a data directory"),
    "from-nemo": ("from_nemo", "a manifest of NeMo becomes a data directory"),
    "from-wespeaker": ("from_wespeaker", "a raw.list of WeSpeaker becomes a data directory"),
    "from-huggingface": ("from_huggingface", "a data set saved with save_to_disk becomes a data directory"),
    "to-wespeaker": ("to_list", "write a data directory as WeSpeaker's raw.list"),
    "to-jsonl": ("to_list", "write a data directory as a manifest of NeMo (JSON lines)"),
    "to-csv": ("to_list", "write a data directory as a table"),
    "to-lhotse": ("to_list", "write a data directory as manifests of lhotse"),
    "make-trials": (
        "make_trials",
        "make trials for a labeled data directory, or convert a trial list to its ids",
    ),
    "split-speakers": ("split_speakers", "SRC OUT REST: some of the speakers go to OUT, the others to REST"),
    "summary": (
        "summary",
        "durations, rates, silence, clipping, duplicates; warnings before you spend hours on training",
    ),
    "validate": ("validate", "check data directories: every file, every line"),
    "fix": ("fix", "sort and fix a data directory; the old files go to DIR/.backup"),
    "copy": ("copy", "copy a data directory, perhaps with other ids"),
    "subset": ("subset", "SRC N DST: N utterances, evenly over the list unless an option says otherwise"),
    "combine": ("combine", "combine data directories into one; keeps the files that all of them have"),
    "corrupt": (
        "corrupt",
        "SRC DST: give a random share of the utterances another speaker's label, to test robust training",
    ),
    "split": ("split", "split into DIR/split<N>/<1..N>, whole speakers in each part"),
    "split-labels": (
        "split_labels",
        "N random utterances of each speaker go to OUT/labeled, the others without speakers to "
        "OUT/unlabeled, their true speakers to OUT/truth, for diagnostics",
    ),
    "filter": ("filter_scp", "print the lines whose column is an id in IDLIST (its first column)"),
    "utt2spk-to-spk2utt": ("spk2utt", "turn `utt spk` lines into `spk utt1 utt2 ...`"),
}
