"""Trains facial-expression classifiers on FER-2013 in JAX and Flax, and applies them to pictures and videos."""

__all__ = ["Classifier"]


def __getattr__(name: str):
    # Imported on first use: JAX takes a second to import, which `import fer_jax` should not have to wait for.
    if name == "Classifier":
        from fer_jax.faces.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
