"""Two real processes that talk over gloo, against one."""

import json
import socket

import numpy as np

from tests.checkpoints import read_arrays
from tests.end_to_end.test_main import command, run, start


def test_two_processes_train_the_network_that_one_trains(csv_file, tmp_path):
    status, _, err = run(command(csv_file, tmp_path / "one"))
    assert status == 0, err
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        start(
            command(csv_file, tmp_path / "two", **{"parallel.distributed": True}),
            JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(process_id),
        )
        for process_id in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "2 x cpu (cpu), 2 processes" in outputs[0][0]
    # One process speaks and writes for all; Gloo speaks for itself.
    assert all(line.startswith("[Gloo]") for line in outputs[1][0].splitlines())

    events = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(events[0]) == len(events[1])
    for one, two in zip(*events, strict=True):
        assert (one["step"], one["kind"]) == (two["step"], two["kind"])
        np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-3)
    one, two = read_arrays(tmp_path / "one"), read_arrays(tmp_path / "two")
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_allclose(one[key], two[key], atol=2e-3, err_msg=key)
