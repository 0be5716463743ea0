"""Mutated files give a `UserError` or success: no other exception, within seconds, with bounded memory.

All targets share a minute of CPU time, or an hour with --slow. A case depends on SPKV_FUZZ_SEED (0), the
target's name and its number; the number of cases depends on the machine's speed.
"""

import logging
import os
import random
import resource
import signal
import time
from contextlib import contextmanager

import pytest
from fuzz import targets

SEED = int(os.environ.get("SPKV_FUZZ_SEED", "0"))
MINUTE, HOUR = 40, 3600  # CPU seconds for all targets; a minute must include the imports
MOST_SECONDS, MOST_BYTES = 5, 400 << 20  # CPU seconds for one case
# Byte sequences that have broken readers before, in YAML, JSON, UTF-8 and binary headers.
NASTY = [
    b"9" * 5000, b"[" * 2000, b'{"a":' * 2000, b"NaN", b"-Infinity", b"1e999", b"18446744073709551615", b"1_0", b"0b_",
    b"null", b"true", b"-5", b"[]", b"{}", b'"x"', b'"\\ud800"', b"\xff\xfe", b"\x00", b"\x7f" * 8, b"../", b"$$",
    b"&x ", b"*x", b"!!int ", b"!!bool x", b"? ", b"2020-99-99", b"<b>", b"\n", b"- ", b": ", b"<<: ",
    b"\r\n", b"\xef\xbb\xbf", "\u2028".encode(), "\u0663".encode(), b"\xff" * 4, b"\x00" * 8, b"\xff\xff\xff\x7f",
    b"\x80", b"1e308", b"-1", b"0", b"~", b" |",
]  # fmt: skip


def mutated(rng: random.Random, sound: list[bytes]) -> bytes:
    """A valid file with one to four pieces replaced, half of them near its start, where headers are."""
    data = rng.choice(sound)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, min(len(data), rng.choice([64, len(data)])))
        to = min(len(data), at + rng.choice([0, 1, 1, 2, 4, 8, 40, 1000]))
        new = rng.choice([rng.choice(NASTY), rng.randbytes(rng.randint(0, 4)), b"", data[at:to] * 2])
        data = data[:at] + new + data[to:]
    return data


class TooSlow(BaseException):
    """A BaseException, so that no `except Exception` of a reader takes it for a damaged file."""


@contextmanager
def bounds():
    """Within it, the process may allocate at most `MOST_BYTES` more; `case()` starts the clock of a case."""

    def late(*_):
        raise TooSlow(f"a case took more than {MOST_SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    logging.disable()  # pytest keeps every warning of a damaged cache: 200 MB in an hour
    with open("/proc/self/statm") as f:
        now = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_BYTES, hard))
    before = signal.signal(signal.SIGVTALRM, late)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    finally:
        logging.disable(logging.NOTSET)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.timeout(HOUR)
@pytest.mark.parametrize("name", targets.ALL)
def test_mutated_files_are_read_or_refused(name, request, tmp_path):
    share = (HOUR if request.config.getoption("--slow") else MINUTE) / len(targets.ALL)
    target, seeds = targets.ALL[name]
    sound = seeds()
    for data in sound:
        target(data)
    number, start = 0, time.process_time()  # what the sound files import takes no time from the cases
    with bounds() as case:
        while time.process_time() - start < share:
            data = mutated(random.Random(f"{SEED} {name} {number}"), sound)
            case()
            try:
                target(data)
            except BaseException as err:
                (tmp_path / "case").write_bytes(data)
                err.add_note(f"target {name}, seed {SEED}, case {number}: {tmp_path}/case, {data[:300]!r}")
                raise
            number += 1
    print(f"{name}: seed {SEED}, {number} cases")
    assert number >= 5, "its share of the time is too short to say anything"


def test_the_bounds_hold():
    with bounds() as case, pytest.raises(MemoryError):
        case()
        bytearray(2 * MOST_BYTES)
    with bounds(), pytest.raises(TooSlow):
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.05)
        while True:
            pass
