"""Compare experiments: the last system of each, and paired differences of their EERs on the same trials."""

import json
from pathlib import Path

from pyspkv.base.errors import UserError
from pyspkv.data.trials import read_trials
from pyspkv.score import metrics, scoring

LAST = ("finetune", "baseline", "supervised")  # the first that was scored counts, else the last round


def last_phase(scores: dict[str, dict[str, dict]], name: str) -> str:
    """The phase that counts as the result of an experiment. It is chosen by its name, never by its score.

    Args:
        scores: phase -> trial list -> metrics, in the order of the pipeline.
        name: the trial list.
    """
    scored = [phase for phase, lists in scores.items() if name in lists]
    rounds = [phase for phase in scored if phase.startswith("round")]
    return next((p for p in LAST if p in scored), (rounds or scored)[-1])


def compare(folder: Path, ours: dict, others: list[tuple[Path, str, dict]], name: str) -> list[dict]:
    """One record per other experiment: its EER, and the paired difference ours - theirs with a 95 % interval.

    Args:
        folder: folder of our system.
        ours: its metrics as bin.evaluate wrote them (with the path of the trials).
        others: (experiment, its last phase, metrics of that phase).

    UserError: a score file or the trial list is gone, or a score file lacks trials of ours.
    """
    out = []
    for exp, phase, theirs in others:
        record = {"experiment": str(exp), "system": phase, "eer": theirs["eer"]}
        record |= {k: theirs.get(k) for k in ("eer_ci_low", "eer_ci_high", "min_dcf_0.01")}
        trials = Path(ours.get("trials", ""))
        if not trials.is_file():
            raise UserError(
                "its trial list is gone", file=folder / f"score/{name}.json", hint="score it again"
            )
        enrol, test, target = read_trials(trials)
        enrol_map = trials.with_name("enrol_map")
        units = metrics.resampling(
            enrol, test, target, trials.with_name("utt2spk"), enrol_map if enrol_map.is_file() else None
        )
        a, b = (scoring.read_scores(f / f"score/{name}.scores", enrol, test) for f in (folder, exp / phase))
        paired = metrics.compare(a, b, target, units, metrics.replicates_for(len(target)))
        out.append(record | {k: v for k, v in paired.items() if k != "eer_other"})
    return out


def table(ours: tuple[str, dict], compared: list[dict]) -> list[str]:
    """Markdown lines: our system, then the others with our EER minus theirs."""

    def span(m: dict) -> str:
        low, high = m.get("eer_ci_low"), m.get("eer_ci_high")
        return "-" if low is None or high is None else f"{low:.2f} .. {high:.2f}"

    phase, m = ours
    lines = ["", "## Experiments side by side", ""]
    lines += [
        "| experiment | system | EER % | 95 % interval | this EER less that (paired 95 %) |",
        "|---|---|---|---|---|",
    ]
    lines.append(f"| this one | {phase} | {m['eer']:.2f} | {span(m)} | - |")
    for c in compared:
        low, high = c["eer_difference_ci_low"], c["eer_difference_ci_high"]
        interval = "" if low is None else f" ({low:+.2f} .. {high:+.2f})"
        difference = f"{c['eer_difference']:+.2f}{interval}"
        lines.append(
            f"| {json.dumps(c['experiment'])[1:-1]} | {c['system']} | {c['eer']:.2f} | {span(c)} | {difference} |"
        )
    return lines
