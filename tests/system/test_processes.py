"""Processes that compare values and agree on errors, in real processes over gloo."""

import signal
import textwrap
import time

import pytest

from fer_jax.errors import UserError
from fer_jax.system import processes
from tests.support import processes as workers

AGREE = textwrap.dedent("""
    def command():
        values = {"the dataset": "faces (12ab)", "config.seed": 0, "config.dataset.path": None}
        if jax.process_index() == jax.process_count() - 1:
            values |= DIFFERENT
        processes.require_agreement(values)
        print("went on", jax.process_index())

    sys.exit(exits.run(command))
""")


def test_a_single_process_agrees_with_itself():
    processes.require_agreement({"config.seed": 1})
    with pytest.raises(UserError, match="wrong"), processes.agreeing_on_errors():
        raise UserError("wrong")


def test_processes_with_equal_values_go_on():
    outputs = workers.run(AGREE.replace("DIFFERENT", "{}"), 2)
    assert [status for status, _, _ in outputs] == [0, 0], outputs
    assert [f"went on {process}" in out for process, (_, out, _) in enumerate(outputs)] == [True, True]


def test_processes_with_other_values_all_leave_with_the_same_lines():
    different = {"the dataset": "faces (ü34cd)" * 100, "config.seed": 7, "config.new": 1.5}
    started = time.monotonic()
    outputs = workers.run(AGREE.replace("DIFFERENT", repr(different)), 3)
    assert time.monotonic() - started < 40
    assert [status for status, _, _ in outputs] == [2, 2, 2], outputs
    for _, out, err in outputs:
        assert "went on" not in out
        assert workers.said(err) == [
            "fer_jax: the processes of this run differ: config.new is None in processes 0, 1, 1.5 in process 2",
            "fer_jax: the processes of this run differ: config.seed is 0 in processes 0, 1, 7 in process 2",
            "fer_jax: the processes of this run differ: the dataset is 'faces (12ab)' in processes 0, 1, "
            f"{different['the dataset']!r} in process 2",
        ]


FAIL = textwrap.dedent("""
    from fer_jax.errors import Diverged, FerJaxError, StorageError, UserError

    def command():
        with processes.agreeing_on_errors():
            if jax.process_index() == CULPRIT:
                time.sleep(1)
                raise ERROR
        print("went on")

    sys.exit(exits.run(command))
""")


@pytest.mark.parametrize(
    ("error", "status", "lines", "culprit"),
    [
        ('UserError("runs/a is in use\\nby another run")', 2, ["runs/a is in use", "by another run"], 0),
        ('StorageError("runs/a: quota exceeded")', 4, ["runs/a: quota exceeded"], 1),
        ('OSError(30, "Read-only file system", "runs/a")', 4, ["[Errno 30] Read-only file system: 'runs/a'"], 0),
        ('ZeroDivisionError("of ours")', 1, ["ZeroDivisionError: of ours"], 1),
    ],
)
def test_a_mistake_that_one_process_sees_ends_all_at_once_with_its_status(error, status, lines, culprit):
    started = time.monotonic()
    outputs = workers.run(FAIL.replace("CULPRIT", str(culprit)).replace("ERROR", error), 2)
    assert time.monotonic() - started < 30
    assert [status for status, _, _ in outputs] == [status, status], outputs
    assert not any("went on" in out for _, out, _ in outputs)
    (_, _, own), (_, _, other) = outputs[culprit], outputs[1 - culprit]
    assert workers.said(other) == [f"fer_jax: process {culprit}: {line}" for line in lines]
    if status == 1:
        assert "Traceback (most recent call last):" in own
        assert own.count("ZeroDivisionError: of ours") == 1
    else:
        assert workers.said(own) == [f"fer_jax: {line}" for line in lines]
        assert "Traceback" not in own + other


def test_an_error_that_only_one_process_ever_sees_ends_it_within_seconds():
    script = textwrap.dedent("""
        from fer_jax.errors import UserError

        def command():
            if jax.process_index() == 1:
                raise UserError("wrong")
            time.sleep(30)  # as if it trained

        exits.run(command)
    """)
    started = workers.start(script, 2)
    try:
        _, err = started[1].communicate(timeout=25)
        assert started[1].returncode == 2
        assert workers.said(err) == ["fer_jax: wrong"]
        assert started[0].poll() is None
    finally:
        for process in started:
            process.kill()
            process.communicate()


REDUCE = textwrap.dedent("""
    import os, signal
    from fer_jax import parallel

    def command():
        mesh = parallel.make_mesh()
        add = parallel.map_step(lambda x, _, y: x + jax.lax.psum(y["x"].sum(), "data"), mesh, "shard_map")
        total = parallel.replicate(np.float32(0), mesh)
        for step in range(100_000):
            total = add(total, {}, parallel.shard_batch({"x": np.ones(1, np.float32)}, mesh, "shard_map"))
            np.asarray(total)
            if step == 20 and jax.process_index() == 1:
                END

    sys.exit(exits.run(command))
""")


def test_a_process_that_loses_another_one_says_so_with_status_5():
    (status, _, err), (killed, _, _) = workers.run(REDUCE.replace("END", "os.kill(os.getpid(), signal.SIGKILL)"), 2)
    assert killed == -9
    assert status == 5, err
    (line,) = workers.said(err)
    assert "another process of this run is gone or can't be reached" in line
    assert "by peer" in line


def test_a_process_without_memory_is_not_taken_for_a_lost_one():
    allocate = "jax.jit(lambda: jax.numpy.ones((10**7, 10**7)))()"
    started = time.monotonic()
    (other, _, err), (status, _, own) = workers.run(REDUCE.replace("END", allocate), 2)
    assert time.monotonic() - started < 40
    assert status == 6
    assert "Traceback (most recent call last):" not in own
    (line,) = workers.said(own)
    assert "too little memory (RESOURCE_EXHAUSTED" in line
    assert "config.batch_size" in line
    assert other == 5, err


def test_a_signal_before_there_is_anything_to_save_ends_the_process():
    # JAX's handler, which notes that a machine is to be preempted, would swallow it.
    # With one process only this call joins: `join_processes` has nothing to do.
    script = "import os, signal; processes.initialize(); os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)"
    ((status, _, err),) = workers.run(script, 1)
    assert status == -signal.SIGTERM, err
