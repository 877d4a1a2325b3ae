"""High-throughput training of facial-expression classifiers on FER-2013, in JAX and Flax."""
