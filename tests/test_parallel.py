"""A step mapped over devices of one and of two real processes."""

import json
import textwrap

import pytest

from tests.support import processes as workers

# Takes compiled and plain steps in turn, as the training program and the evaluator do.
TRAIN = textwrap.dedent("""
    import json
    from fer_jax import parallel

    def step(state, data, batch):
        gradient = ((batch["x"] @ state["weights"])[..., None] * batch["x"]).mean((0, 1))
        gradient = jax.lax.pmean(gradient, parallel.AXIS_NAME) + data["decay"] * state["weights"]
        total = jax.lax.psum(batch["x"].sum(), parallel.AXIS_NAME)
        return {"weights": state["weights"] - 0.1 * gradient}, {"total": total}

    mesh, mapper = parallel.make_mesh(), MAPPER
    mapped = parallel.map_step(step, mesh, mapper, batch_axis=1, donate=True)
    state = parallel.replicate({"weights": np.ones(3, np.float32)}, mesh)
    data = parallel.replicate({"decay": np.float32(0.01)}, mesh)
    images = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
    part = 8 // jax.process_count()
    mine = images[:, part * jax.process_index():][:, :part]

    def batch():
        return parallel.shard_batch({"x": mine}, mesh, mapper, batch_axis=1)

    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    compiled = mapped.lower(abstract, data, batch()).compile()
    for function in (compiled, mapped, compiled, mapped):
        state, sums = function(state, data, batch())
        assert state["weights"].sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, jax.P()), 1)
    print(json.dumps([np.asarray(state["weights"]).tolist(), float(sums["total"])]))
""")


@pytest.fixture(scope="module")
def parameters():
    """{(mapper, number of processes): [parameters and sum in each process]} after four steps on four devices."""
    cases = [(mapper, number) for mapper in ("shard_map", "pmap") for number in (1, 2)]
    found = {}
    for mapper, number in cases:
        outputs = workers.run(TRAIN.replace("MAPPER", repr(mapper)), number, devices=4 // number)
        assert [status for status, _, _ in outputs] == number * [0], outputs
        found[mapper, number] = [json.loads(out.splitlines()[-1]) for _, out, _ in outputs]
    return found


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("mapper", ["shard_map", "pmap"])
def test_one_and_two_processes_compute_the_same_parameters_with_either_mapper(mapper, number, parameters):
    ((weights, total),) = parameters["shard_map", 1]
    assert weights != [1, 1, 1]
    for ours, our_total in parameters[mapper, number]:
        # gloo adds in another order than one process does.
        assert ours == pytest.approx(weights, rel=1e-5)
        assert our_total == pytest.approx(total, rel=1e-5)


def test_both_mappers_compute_the_same_bits_in_every_process(parameters):
    for number in (1, 2):
        everywhere = parameters["shard_map", number] + parameters["pmap", number]
        assert all(result == everywhere[0] for result in everywhere)
