"""Files of strangers, mutated: a `UserError` or success, never another exception, within seconds and bounded memory."""

import resource
from contextlib import contextmanager

import pytest
from fuzz import targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# What has broken readers before, in YAML, JSON, UTF-8 and binary headers.
NASTY = [
    *(
        b"9" * 5000,
        b"[" * 2000,
        b'{"a":' * 2000,
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"18446744073709551615",
        b"1_0",
        b"0b_",
    ),
    *(
        b"null",
        b"true",
        b"-5",
        b"[]",
        b"{}",
        b'"x"',
        b'"\\ud800"',
        b"\xff\xfe",
        b"\x00",
        b"\x7f" * 8,
        b"../",
        b"$$",
    ),
    *(b"&x ", b"*x", b"!!int ", b"!!bool x", b"? ", b"2020-99-99", b"<b>", b"\n", b"- ", b": ", b"<<: "),
]


@st.composite
def mutated(draw, sound: list[bytes]) -> bytes:
    data = draw(st.sampled_from(sound))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.sampled_from([0, 1, 1, 2, 4, 8, 40, 1000])))
        new = draw(
            st.one_of(st.sampled_from(NASTY), st.binary(max_size=4), st.just(b""), st.just(data[at:to] * 2))
        )
        data = data[:at] + new + data[to:]
    return data


@contextmanager
def memory_bound(more: int):
    """Nothing inside may ask for `more` bytes beyond what the process has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as f:
        now = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("name", targets.ALL)
def test_mutated_files_are_read_or_refused(name, request):
    target, sound = targets.ALL[name]
    for data in sound():
        target(data)
    examples = 3000 if request.config.getoption("--slow") else 30
    bounds = settings(
        max_examples=examples,
        deadline=5000,
        database=None,
        derandomize=examples < 1000,
        suppress_health_check=list(HealthCheck),
    )
    with memory_bound(400 << 20):
        bounds(given(mutated(sound()))(target))()


def test_sound_files_are_read():
    """The targets do not live on refusals: each file that they start from is taken, by the target's own reader."""
    exp = targets._run()
    found = targets.checkpoint.restore(exp / "ckpt-3", *targets._model())
    assert found["step"] == 3
    for name in ("config", "state", "weights", "optimiser", "metrics", "log", "rows", "pointer"):
        target, sound = targets.ALL[name]
        for data in sound():
            target.__wrapped__(data)  # without the net for UserErrors
