import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def optimized():
    """Compiles as a training run does; the rest of the suite switches most optimisations off."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.usefixtures("optimized")
def test_vmapped_matvec_and_reduction_over_many_rows_is_right():
    """JAX 0.10.2 computes a wrong sum on CPU for 32,769 rows or more: https://github.com/jax-ml/jax/issues/39103."""
    rows = np.zeros((32_769, 3), np.float32)
    rows[:, 0] = np.arange(len(rows))
    matrix = np.eye(3, dtype=np.float32)

    sums = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.asarray(matrix) @ row) ** 2)))(rows)

    np.testing.assert_allclose(sums, np.sum((rows @ matrix.T) ** 2, axis=1), rtol=1e-6)
