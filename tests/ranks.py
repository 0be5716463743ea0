"""Run a function in several processes of one group (gloo, on the CPU), as the ranks of a training."""

import multiprocessing
import os
import socket
import traceback

import pytest
import torch

from pyspkv.base import distributed


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _rank(function, args, rank: int, world: int, port: int, pipe) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    try:
        distributed.init()
        pipe.send((function(*args), None))
        distributed.close()
    except BaseException:
        pipe.send((None, traceback.format_exc()))
    finally:
        os._exit(0)  # nothing of the test's process is to run at the end


def run(world: int, function, *args) -> list:
    """What `function(*args)` returns on each rank. The processes are forked, so that torch is imported once."""
    if torch.cuda.is_available():
        pytest.skip("a process that has used CUDA cannot be forked")
    fork, port = multiprocessing.get_context("fork"), free_port()
    pipes = [fork.Pipe() for _ in range(world)]
    ranks = [
        fork.Process(target=_rank, args=(function, args, rank, world, port, pipes[rank][1]))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    try:
        found = []
        for ours, _ in pipes:
            assert ours.poll(300), "a rank does not end"
            found.append(ours.recv())
    finally:
        for process in ranks:
            process.kill()
            process.join()
    errors = [error for _, error in found if error]
    assert not errors, "\n".join(errors)
    return [value for value, _ in found]
