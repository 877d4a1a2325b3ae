"""The table of the options that a config may contain."""

from collections.abc import Mapping
from typing import Any

from fer_jax.options.dataset import DATASET
from fer_jax.options.option import (
    ADDRESS,
    ANGLE,
    AT_LEAST_ONE,
    BELOW_ONE,
    INDEX,
    NOT_NEGATIVE,
    ODD,
    PATH,
    POSITIVE,
    PROBABILITY,
    SEED,
    SIZE,
    SWITCH,
    Option,
    matches,
    one_of,
)


def _by_schedule(values: Mapping[str, Any]) -> bool:
    # num_epochs matters to the other schedules, which end with it, and to mixing, which ends before it.
    return values["optimizer.schedule"] != "constant" or values["mix.off_epochs"] > 0


# inference/preprocessing.py defines what each view shows.
_VIEWS = ("whole", "whole_mirrored", "centre_crop", "ten_crops")

# Each option has one row here, and only the code that uses the option needs to know about it.
# A default keeps the behaviour from before the option existed, so that the config of an older run keeps its meaning.
OPTIONS: dict[str, Option] = {
    "seed": Option(0, int, SEED, "Seed of the initial weights, the order of the images and the augmentation."),
    "num_epochs": Option(
        25,
        int,
        AT_LEAST_ONE,
        "Maximum number of epochs. Fixed only if optimizer.schedule is not constant, or mix.off_epochs is set.",
        changes_results=_by_schedule,
    ),
    "batch_size": Option(64, int, AT_LEAST_ONE, "Images in a step, over all devices and processes."),
    **DATASET,
    "augment.flip": Option(0.5, float, PROBABILITY, "Probability of a horizontal flip."),
    "augment.alternating_flip": Option(
        False, bool, SWITCH, "Flip each image in every other epoch, not with a probability."
    ),
    "augment.rotation": Option(10.0, float, ANGLE, "Largest rotation, in degrees, in either direction."),
    "augment.zoom": Option(0.1, float, BELOW_ONE, "Largest zoom, in or out, as a fraction of the size."),
    "augment.shift": Option(0.0, float, BELOW_ONE, "Largest shift, in either direction, as a fraction of the size."),
    "augment.crop": Option(
        None,
        int,
        SIZE,
        "Height and width of the random crops to train on. Unset: the whole image.",
        optional=True,
    ),
    "augment.erasing": Option(
        0.0, float, PROBABILITY, "Probability of setting a rectangle of 2 to 20 % of the image to the image's mean."
    ),
    "mix.mixup": Option(0.0, float, NOT_NEGATIVE, "Alpha of mixup of images and targets. 0: no mixup."),
    "mix.cutmix": Option(
        0.0, float, NOT_NEGATIVE, "Alpha of cutmix. 0: no cutmix. With mixup, each applies to half of the mixed steps."
    ),
    "mix.probability": Option(1.0, float, PROBABILITY, "Probability that a step is mixed."),
    "mix.off_epochs": Option(0, int, INDEX, "Number of last epochs without mixing."),
    "preprocessing.standardize": Option(
        False, bool, SWITCH, "Subtract each image's mean and divide by its standard deviation."
    ),
    "model.depth": Option(50, int, one_of(10, 18, 34, 50, 101, 152), "Layers of the ResNet."),
    "model.stages": Option(
        4,
        int,
        one_of(1, 2, 3, 4),
        "Number of stages to build, from the first; 3 of depth 18 and width 64 are a Wide-ResNet-16-4.",
    ),
    "model.width": Option(64, int, AT_LEAST_ONE, "Channels of the first stage."),
    "model.stem_kernel": Option(7, int, ODD, "Kernel size of the first convolution."),
    "model.stem_stride": Option(2, int, AT_LEAST_ONE, "Stride of the first convolution."),
    "model.stem_pool": Option(True, bool, SWITCH, "Use max pooling after the first convolution."),
    "model.zero_init": Option(False, bool, SWITCH, "Initialise the last batch norm scale of each block with zero."),
    "model.batch_norm_momentum": Option(
        0.9, float, BELOW_ONE, "Share of the running batch statistics that each step keeps."
    ),
    "model.squeeze_excitation": Option(False, bool, SWITCH, "Add squeeze-and-excitation to every block."),
    "model.stochastic_depth": Option(
        0.0,
        float,
        BELOW_ONE,
        "Probability of skipping the last block in training; it grows linearly from 0 at the first.",
    ),
    "model.dropout": Option(0.0, float, BELOW_ONE, "Dropout rate of the head's inputs in training."),
    "model.dtype": Option(
        "auto",
        str,
        one_of("auto", "bfloat16", "float32"),
        "Dtype of the computation; parameters are float32. auto: bfloat16 on devices that compute in it.",
    ),
    "model.sync_batch_norm": Option(
        True, bool, SWITCH, "Compute batch statistics over the global batch, not over each device's part."
    ),
    "model.conv": Option(
        "auto",
        str,
        one_of("auto", "native", "lax", "matmul"),
        "How convolutions are computed. auto: native (our own C++) on CPUs that support it.",
    ),
    "model.init": Option(
        None,
        str,
        PATH,
        "A weights file, ours or of torchvision's ResNets, or 'pretrained', to start from. Unset: random.",
        optional=True,
    ),
    "model.remat": Option(
        False,
        bool,
        SWITCH,
        "Recompute blocks for their gradients instead of keeping activations.",
        changes_results=False,
    ),
    "train.grad_accum_steps": Option(
        1, int, AT_LEAST_ONE, "Microbatches that a device processes in turn, each with its own batch statistics."
    ),
    "train.steps_per_call": Option(
        1, int, AT_LEAST_ONE, "Training steps in each call of the compiled program.", changes_results=False
    ),
    "train.skip_nonfinite": Option(
        None,
        int,
        AT_LEAST_ONE,
        "Maximum number of steps in a row to skip if loss or gradient is not finite. Unset: end the run.",
        optional=True,
    ),
    "optimizer.name": Option(
        "adam",
        str,
        one_of("adam", "sgd"),
        "Adam (AdamW with weight_decay), or SGD with Nesterov momentum 0.9.",
    ),
    "optimizer.learning_rate": Option(0.001, float, POSITIVE, "Peak learning rate."),
    "optimizer.schedule": Option(
        "constant",
        str,
        one_of("constant", "cosine", "linear"),
        "Schedule after the warm-up. cosine and linear (with warm-up: one-cycle) decay to zero at num_epochs.",
    ),
    "optimizer.warmup_epochs": Option(
        0.0, float, NOT_NEGATIVE, "Epochs in which the learning rate rises linearly from zero."
    ),
    "optimizer.weight_decay": Option(
        0.0, float, NOT_NEGATIVE, "Weight decay of kernels: decoupled with adam, added to the gradient (L2) with sgd."
    ),
    "optimizer.clip_norm": Option(
        None, float, POSITIVE, "Clip the gradient to this global norm. Unset: no clipping.", optional=True
    ),
    "loss.label_smoothing": Option(0.0, float, BELOW_ONE, "Share of the target that is spread over all classes."),
    "loss.class_weights": Option(
        "none",
        str,
        one_of("none", "balanced"),
        "Weights in the loss; balanced gives every class the same total weight.",
    ),
    "ema.half_life": Option(
        None,
        float,
        POSITIVE,
        "Half-life, in epochs, of the exponential moving average of the weights. Unset: no average.",
        optional=True,
    ),
    "evaluation.view": Option(
        "auto",
        str,
        one_of("auto", *_VIEWS),
        "View for the evaluation after each epoch. auto: the centre crop with augment.crop, else the whole image.",
    ),
    "evaluation.report_views": Option(
        None,
        str,
        matches(
            rf"({'|'.join(_VIEWS)})(,({'|'.join(_VIEWS)}))*",
            f"of {', '.join(_VIEWS)}, with commas between them",
            ("whole,whole_mirrored",),
            ("", "whole,", "half"),
        ),
        "Further views in the report; the best one on validation is stored with the network.",
        changes_results=False,
        optional=True,
    ),
    "early_stopping.metric": Option(
        "accuracy",
        str,
        one_of("accuracy", "accuracy_without_copies"),
        "Selects the best epoch: the accuracy on all validation images, or on those that are not in train too.",
    ),
    "early_stopping.patience": Option(
        10,
        int,
        AT_LEAST_ONE,
        "Stop after this many epochs without a better validation accuracy.",
        changes_results=False,
    ),
    "early_stopping.min_delta": Option(
        0.0, float, NOT_NEGATIVE, "Improvement of the validation accuracy that resets early_stopping.patience."
    ),
    "parallel.mapper": Option(
        "shard_map",
        str,
        one_of("shard_map", "pmap"),
        "JAX function that maps a step over devices.",
        changes_results=False,
    ),
    "parallel.distributed": Option(
        None,
        bool,
        SWITCH,
        "Join the other processes of a run. Unset: if a launcher or parallel.coordinator is present.",
        changes_results=False,
        optional=True,
    ),
    "parallel.coordinator": Option(
        None, str, ADDRESS, "Address of process 0, if no launcher provides it.", changes_results=False, optional=True
    ),
    "parallel.num_processes": Option(
        None, int, AT_LEAST_ONE, "Number of processes, with coordinator.", changes_results=False, optional=True
    ),
    "parallel.process_id": Option(
        None, int, INDEX, "Index of this process, with coordinator.", changes_results=False, optional=True
    ),
    "parallel.reduce_dtype": Option(
        "float32", str, one_of("float32", "bfloat16"), "Dtype in which devices exchange gradients."
    ),
    "parallel.deterministic": Option(
        False,
        bool,
        SWITCH,
        "Use only GPU kernels that repeat bit for bit; slower.",
        changes_results=False,
    ),
    "checkpoint.every_steps": Option(
        None,
        int,
        AT_LEAST_ONE,
        "Steps between checkpoints within an epoch. Unset: only at its end.",
        changes_results=False,
        optional=True,
    ),
    "checkpoint.every_epochs": Option(
        1,
        int,
        AT_LEAST_ONE,
        "Epochs between checkpoints. A new best epoch, the last one and a stop are always saved.",
        changes_results=False,
    ),
    "checkpoint.storage_timeout": Option(
        600.0, float, POSITIVE, "Seconds to wait for a file system that doesn't answer.", changes_results=False
    ),
    "log.every_steps": Option(50, int, AT_LEAST_ONE, "Steps between training events.", changes_results=False),
    "log.profile_steps": Option(
        None,
        int,
        AT_LEAST_ONE,
        "Number of steps to trace to profile/ in the workdir.",
        changes_results=False,
        optional=True,
    ),
}
