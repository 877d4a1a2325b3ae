"""Trains facial-expression classifiers on FER-2013 in JAX and Flax, and puts them to use."""

__all__ = ["Classifier"]


def __getattr__(name: str):
    # JAX takes a second to import, which `import fer_jax` needn't wait for.
    if name == "Classifier":
        from fer_jax.faces.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
