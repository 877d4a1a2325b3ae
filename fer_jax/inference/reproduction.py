"""Checks whether a checkpoint's validation accuracy is reproduced, on this machine and by this version."""

from fer_jax.errors import UserError
from fer_jax.inference import metrics
from fer_jax.inference.trained_model import TrainedModel, describe_computation
from fer_jax.system.terminal import Terminal

# The difference that a few borderline images explain: logits that differ in their last bits, on another device or by
# another convolution, change the prediction if two classes are nearly equal.
_BORDERLINE_IMAGES = 3
_BORDERLINE_SHARE = 0.005


def compare_with_training(trained: TrainedModel, metric_sums: dict, strict: bool, terminal: Terminal) -> None:
    """Reports whether the validation accuracy is the logged one; if it's far, warns or, if strict, raises UserError."""
    logged, computed = trained.metadata["validation"]["accuracy"], metrics.accuracy(metric_sums)
    if computed == logged:
        terminal.say(
            f"Restored step {trained.step}: its validation accuracy, {computed:.4%}, is the one logged in training."
        )
        return
    num_images = int(metric_sums["confusion"].sum())
    # Checksums protect the weights, so only the computation can differ.
    trained_on, here = trained.metadata.get("computation"), describe_computation(trained.model)
    if trained_on is None:
        reason = "what it was trained on was not stored"
    else:
        pairs = {key: (trained_on.get(key), value) for key, value in here.items()}
        different = [f"{key} {theirs} there and {ours} here" for key, (theirs, ours) in pairs.items() if theirs != ours]
        # Kernels stored in two bytes per value are a slightly different network.
        stored_as = trained.metadata.get("weights_dtype", "float32")
        different += [f"kernels stored in {stored_as}"] if stored_as != "float32" else []
        reason = ", ".join(different) or "device and versions are the same, so look for what else changed"
    message = (
        f"step {trained.step}: its validation accuracy was {logged:.4%} in training and is {computed:.4%} here, "
        f"{abs(computed - logged) * num_images:.0f} of {num_images:,} images ({reason})"
    )
    if abs(computed - logged) * num_images <= max(_BORDERLINE_IMAGES, _BORDERLINE_SHARE * num_images) + 1e-6:
        terminal.say(f"Restored {message}; a few borderline images explain that.")
    elif strict:
        raise UserError(f"{message}; that is more than a few borderline images explain")
    else:
        terminal.warn(f"{message}; that is more than a few borderline images explain")
