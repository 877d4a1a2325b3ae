"""A step mapped over the devices of one real process and of two."""

import json
import textwrap

import pytest

from tests.support import processes as workers

# The script alternates between compiled steps, as in the training program, and plain steps, as in the evaluator.
TRAIN = textwrap.dedent("""
    import json
    from fer_jax import parallel

    def step(state, data, batch):
        gradient = ((batch["x"] @ state["weights"])[..., None] * batch["x"]).mean((0, 1))
        gradient = jax.lax.pmean(gradient, parallel.AXIS_NAME) + data["decay"] * state["weights"]
        total = jax.lax.psum(batch["x"].sum(), parallel.AXIS_NAME)
        return {"weights": state["weights"] - 0.1 * gradient}, {"total": total}

    mesh = parallel.make_mesh()
    images = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
    part = 8 // jax.process_count()
    mine = images[:, part * jax.process_index():][:, :part]

    def four_steps(mapper):
        def batch():
            return parallel.shard_batch({"x": mine}, mesh, mapper, batch_axis=1)

        mapped = parallel.map_step(step, mesh, mapper, batch_axis=1, donate=True)
        state = parallel.replicate({"weights": np.ones(3, np.float32)}, mesh)
        data = parallel.replicate({"decay": np.float32(0.01)}, mesh)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        compiled = mapped.lower(abstract, data, batch()).compile()
        for function in (compiled, mapped, compiled, mapped):
            state, sums = function(state, data, batch())
            assert state["weights"].sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, jax.P()), 1)
        return np.asarray(state["weights"]).tolist(), float(sums["total"])

    print(json.dumps({mapper: four_steps(mapper) for mapper in ("shard_map", "pmap")}))
""")


def four_steps(number: int) -> list[dict]:
    """Returns {mapper: (parameters, sum)} of each of `number` processes after four steps on four devices."""
    outputs = workers.run(TRAIN, number, devices=4 // number)
    assert [status for status, _, _ in outputs] == number * [0], outputs
    return [json.loads(out.splitlines()[-1]) for _, out, _ in outputs]


def test_one_and_two_processes_compute_the_same_parameters_with_either_mapper():
    (alone,), both = four_steps(1), four_steps(2)
    weights, total = alone["shard_map"]
    assert weights != [1, 1, 1]
    # Both mappers compute the same bits in every process.
    assert alone["pmap"] == alone["shard_map"]
    assert all(found == both[0]["shard_map"] for process in both for found in process.values())
    for our_weights, our_total in both[0].values():
        # gloo adds in a different order than a single process.
        assert our_weights == pytest.approx(weights, rel=1e-5)
        assert our_total == pytest.approx(total, rel=1e-5)
