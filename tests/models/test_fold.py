"""Networks with folded norms, compared with the same networks computed layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.models import resnet
from fer_jax.models.conv import resolve
from fer_jax.models.resnet import ResNet
from tests.models.test_conv_norm import IMAGES, NETS, make, variables_of
from tests.support import native


def logits(model: ResNet, variables, images=IMAGES):
    return jax.jit(lambda variables: model.apply(variables, images, train=False))(variables)


# A network with a large window is not folded, see below.
@pytest.mark.parametrize("net", sorted(NETS.keys() - {"large window"}))
def test_a_folded_network_is_the_network(net):
    native.load()
    variables, model = variables_of(net), make(net, "native")
    folded = jax.jit(lambda variables: resnet.prepare(model, variables))(variables)
    # No norm is left, and every convolution's kernel is packed.
    assert set(folded) == {"params", "folded"}
    assert all(leaf.ndim < 4 for leaf in jax.tree.leaves(folded))
    np.testing.assert_allclose(
        logits(model, folded), logits(make(net, "lax"), variables), rtol=0, atol=1e-5 * jnp.abs(IMAGES).max()
    )


def test_in_bfloat16_folding_rounds_no_more_than_the_network_does():
    native.load("bfloat16")
    exact = logits(make("basic", "lax"), variables_of("basic"))
    model = make("basic", "native", dtype=jnp.bfloat16)
    by_layers = logits(model, variables_of("basic"))
    folded = logits(model, resnet.prepare(model, variables_of("basic")))
    assert jnp.abs(folded - exact).max() <= 2 * jnp.abs(by_layers - exact).max()


def test_what_the_native_code_does_not_compute_is_not_folded():
    variables = variables_of("basic")
    prepared = resnet.prepare(make("basic", "matmul", dtype=jnp.bfloat16), variables)
    assert jax.tree.structure(prepared) == jax.tree.structure(variables)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(prepared) if leaf.ndim == 4} == {"bfloat16"}
    # The native code doesn't cover a window of 9.
    model = ResNet((1,), False, width=8, stem_kernel=9, conv_fn=resolve("native"))
    native.load()
    variables = model.init(jax.random.key(0), IMAGES, train=False)
    np.testing.assert_array_equal(logits(model, resnet.prepare(model, variables)), logits(model, variables))
