"""The table of options: what a config may hold, and the texts that are printed from it."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Check:
    """A condition on a value of the right type. right, wrong: examples, from which the tests are made."""

    wanted: str
    holds: Callable[[Any], bool]
    right: tuple
    wrong: tuple = ()


@dataclasses.dataclass(frozen=True)
class Option:
    """A row of the table.

    default: the value that a run had before the option existed; None (unset) only if `optional`. type: bool, int, str
    or float, which accepts an int. changes_results: whether a run that goes on with another value ends otherwise, by
    more than rounding, than one that had this value from its first step; a function of the config's flat values if it
    depends on them.
    """

    default: Any
    type: type
    check: Check
    note: str
    changes_results: bool | Callable[[Mapping[str, Any]], bool] = True
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Returns whether `value` has the option's type and passes its check."""
        if value is None:
            return self.optional
        if isinstance(value, bool) and self.type is not bool:  # a bool is an int in Python
            return False
        return isinstance(value, (int, float) if self.type is float else self.type) and self.check.holds(value)


def _one_of(*choices) -> Check:
    return Check(
        f"one of {', '.join(map(str, choices))}", lambda value: value in choices, choices, (type(choices[0])(),)
    )


def _matches(pattern: str, wanted: str, right: tuple, wrong: tuple) -> Check:
    return Check(wanted, lambda value: bool(re.fullmatch(pattern, value)), right, wrong)


_SWITCH = Check("True or False", lambda value: True, (True, False))
_AT_LEAST_ONE = Check("at least 1", lambda value: value >= 1, (1, 1000), (0, -1))
_SIZE = Check("from 8 to 512", lambda value: 8 <= value <= 512, (8, 48, 512), (0, 7, 513))
_INDEX = Check("at least 0", lambda value: value >= 0, (0, 12), (-1,))
_NOT_NEGATIVE = Check("at least 0, and finite", lambda value: 0 <= value < math.inf, (0, 2.5), (-0.1, math.inf))
_POSITIVE = Check("above 0, and finite", lambda value: 0 < value < math.inf, (1e-9, 1), (0, -0.1, math.inf))
_PROBABILITY = Check("from 0 to 1", lambda value: 0 <= value <= 1, (0, 0.5, 1), (-0.1, 1.1))
_BELOW_ONE = Check("from 0 to below 1", lambda value: 0 <= value < 1, (0, 0.99), (-0.1, 1))
_ANGLE = Check("from 0 to 180", lambda value: 0 <= value <= 180, (0, 180), (-1, 180.5))
_ODD = Check("odd", lambda value: value > 0 and value % 2 == 1, (1, 3, 7), (0, 2, -3))
# JAX takes 32 bits of a seed, TensorFlow a signed one: larger seeds would be the same as smaller ones.
_SEED = Check("from 0 to 2147483647", lambda value: 0 <= value < 2**31, (0, 2**31 - 1), (-1, 2**31, 2**32, 2**63))
_PATH = _matches(r"(?s).+", "a path", ("data/fer2013.csv",), ("",))
_ADDRESS = _matches(r"[^:]+:\d+", "host:port", ("localhost:1234",), ("", "localhost", "localhost:", ":80"))


def _by_schedule(values: Mapping[str, Any]) -> bool:
    return values["optimizer.schedule"] != "constant"  # the others end at num_epochs


# A row an option: nothing else has to know it but the code that uses it.
# A default is what runs did before the option existed, so that an older run means the same with it.
OPTIONS: dict[str, Option] = {
    "seed": Option(0, int, _SEED, "Seed of the initial weights, the order of the images and the augmentation."),
    "num_epochs": Option(
        25,
        int,
        _AT_LEAST_ONE,
        "Most epochs to train. Fixed only if optimizer.schedule is not constant.",
        changes_results=_by_schedule,
    ),
    "batch_size": Option(64, int, _AT_LEAST_ONE, "Images in a step, over all devices and processes."),
    # The files may move: a run's dataset is compared by its fingerprint, which covers the hold-out too.
    "dataset.source": Option(
        "auto",
        str,
        _one_of("auto", "fer2013", "embedded"),
        "FER-2013's files, the embedded dataset or, with auto, the files if there are any.",
        changes_results=False,
    ),
    "dataset.path": Option(
        None,
        str,
        _PATH,
        "A FER-2013 csv (also .gz), a folder of such or of images. Unset: the usual files in data/.",
        changes_results=False,
        optional=True,
    ),
    "dataset.classes": Option(
        "fer2013",
        str,
        _one_of("fer2013", "folders"),
        "The classes: FER-2013's seven or, with folders, the names of the class folders, sorted.",
        changes_results=False,
    ),
    "dataset.image_size": Option(48, int, _SIZE, "Height and width of the images in pixels.", changes_results=False),
    "dataset.resize": Option(
        False,
        bool,
        _SWITCH,
        "Whether images of other sizes and depths are brought to image_size, or refused.",
        changes_results=False,
    ),
    "dataset.cache_dir": Option(
        None,
        str,
        _PATH,
        "Folder in which files are prepared, once. Unset: fer_jax/prepared in the user's cache (XDG_CACHE_HOME).",
        changes_results=False,
        optional=True,
    ),
    "dataset.split_seed": Option(
        0, int, _SEED, "Seed of the hold-out, if the files have no validation images.", changes_results=False
    ),
    "dataset.loader": Option(
        "tf.data",
        str,
        _one_of("tf.data", "device"),
        "tf.data sends images to the devices; device puts the dataset there once and sends indices.",
        changes_results=False,
    ),
    "augment.flip": Option(0.5, float, _PROBABILITY, "Probability of a horizontal flip."),
    "augment.rotation": Option(10.0, float, _ANGLE, "Largest rotation, in degrees, in either direction."),
    "augment.zoom": Option(0.1, float, _BELOW_ONE, "Largest zoom, in or out, as a fraction of the size."),
    "augment.shift": Option(0.0, float, _BELOW_ONE, "Largest shift, in either direction, as a fraction of the size."),
    "model.depth": Option(50, int, _one_of(10, 18, 34, 50, 101, 152), "Layers of the ResNet."),
    "model.stages": Option(
        4,
        int,
        _one_of(1, 2, 3, 4),
        "Stages that are built, the first ones; 3 of depth 18 and width 64 make a Wide-ResNet-16-4.",
    ),
    "model.width": Option(64, int, _AT_LEAST_ONE, "Channels of the first stage."),
    "model.stem_kernel": Option(7, int, _ODD, "Kernel size of the first convolution."),
    "model.stem_stride": Option(2, int, _AT_LEAST_ONE, "Stride of the first convolution."),
    "model.stem_pool": Option(True, bool, _SWITCH, "Whether max pooling follows the first convolution."),
    "model.zero_init": Option(False, bool, _SWITCH, "Whether the last scale of each block starts at zero."),
    "model.dtype": Option(
        "auto",
        str,
        _one_of("auto", "bfloat16", "float32"),
        "Dtype of the computation; parameters are float32. auto: bfloat16 on devices that compute in it.",
    ),
    "model.sync_batch_norm": Option(
        True, bool, _SWITCH, "Whether batch statistics are those of the global batch, not of each device's part."
    ),
    "model.conv": Option(
        "auto",
        str,
        _one_of("auto", "native", "lax", "matmul"),
        "How convolutions are computed; auto chooses by the device: native (our own, compiled here) where it can.",
    ),
    "model.remat": Option(
        False, bool, _SWITCH, "Whether blocks are computed again for their gradients, not kept.", changes_results=False
    ),
    "train.grad_accum_steps": Option(
        1, int, _AT_LEAST_ONE, "Microbatches that a device processes one after the other, with statistics of their own."
    ),
    "train.steps_per_call": Option(
        1, int, _AT_LEAST_ONE, "Steps that one call of the compiled program takes.", changes_results=False
    ),
    "train.skip_nonfinite": Option(
        None,
        int,
        _AT_LEAST_ONE,
        "Most steps in a row to skip because loss or gradient is not finite. Unset: the first ends the run.",
        optional=True,
    ),
    "optimizer.learning_rate": Option(0.001, float, _POSITIVE, "Peak learning rate of Adam."),
    "optimizer.schedule": Option(
        "constant",
        str,
        _one_of("constant", "cosine"),
        "Learning rate after the warm-up; cosine falls to zero at num_epochs.",
    ),
    "optimizer.warmup_epochs": Option(0.0, float, _NOT_NEGATIVE, "Epochs in which the learning rate rises from zero."),
    "optimizer.weight_decay": Option(0.0, float, _NOT_NEGATIVE, "Decoupled weight decay, of kernels only."),
    "optimizer.clip_norm": Option(
        None, float, _POSITIVE, "Largest norm of the global gradient. Unset: no clipping.", optional=True
    ),
    "loss.label_smoothing": Option(0.0, float, _BELOW_ONE, "Part of the target that is spread over all classes."),
    "early_stopping.patience": Option(
        10,
        int,
        _AT_LEAST_ONE,
        "Epochs in a row without a better validation accuracy that end a run.",
        changes_results=False,
    ),
    "early_stopping.min_delta": Option(
        0.0, float, _NOT_NEGATIVE, "By how much a validation accuracy must be better for early stopping to wait on."
    ),
    "parallel.mapper": Option(
        "shard_map", str, _one_of("shard_map", "pmap"), "How a step is mapped over devices.", changes_results=False
    ),
    "parallel.distributed": Option(
        None,
        bool,
        _SWITCH,
        "Whether there are other processes. Unset: if a launcher or parallel.coordinator says so.",
        changes_results=False,
        optional=True,
    ),
    "parallel.coordinator": Option(
        None, str, _ADDRESS, "Address of process 0, if no launcher tells it.", changes_results=False, optional=True
    ),
    "parallel.num_processes": Option(
        None, int, _AT_LEAST_ONE, "Number of processes, with coordinator.", changes_results=False, optional=True
    ),
    "parallel.process_id": Option(
        None, int, _INDEX, "Index of this process, with coordinator.", changes_results=False, optional=True
    ),
    "parallel.reduce_dtype": Option(
        "float32", str, _one_of("float32", "bfloat16"), "Dtype in which devices exchange gradients."
    ),
    "parallel.deterministic": Option(
        False,
        bool,
        _SWITCH,
        "Whether a GPU is held to kernels that repeat to the last bit; slower.",
        changes_results=False,
    ),
    "checkpoint.every_steps": Option(
        None,
        int,
        _AT_LEAST_ONE,
        "Steps between checkpoints within an epoch. Unset: none but the one at its end.",
        changes_results=False,
        optional=True,
    ),
    "checkpoint.storage_timeout": Option(
        600.0, float, _POSITIVE, "Seconds to wait for a file system that doesn't answer.", changes_results=False
    ),
    "log.every_steps": Option(50, int, _AT_LEAST_ONE, "Steps between training events.", changes_results=False),
    "log.profile_steps": Option(
        None, int, _AT_LEAST_ONE, "Steps to trace into the workdir's profile/.", changes_results=False, optional=True
    ),
}


def _rows() -> list[tuple[str, str, str, str, str]]:
    """Returns (key, default, wanted, whether a run is bound to it, note) of each option, as text."""
    return [
        (
            key,
            "unset" if option.default is None else str(option.default),
            f"{option.type.__name__}, {option.check.wanted}",
            "see note" if callable(option.changes_results) else "yes" if option.changes_results else "no",
            option.note,
        )
        for key, option in OPTIONS.items()
    ]


def describe_options() -> str:
    """Returns the table as text for a terminal (--config.help)."""
    lines = [
        "The options of a config and their defaults. Set them in a config file or by --config.KEY=VALUE.",
        "A run may go on with another value of those marked *.",
    ]
    section = None
    for key, default, wanted, fixed, note in _rows():
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines.append("")
        lines.append(f"{'* ' if fixed == 'no' else '  '}{key} = {default}  ({wanted})\n      {note}")
    return "\n".join(lines)


def options_page() -> str:
    """Returns the table as Markdown (docs/options.md)."""
    lines = [
        "# Options",
        "",
        "Every option of a config. A file in `configs/` sets some, `--config.KEY=VALUE` sets any, and the rest have",
        "these defaults. A run in a workdir can go on with another value of an option that is not *fixed*.",
        "Written by `python -m fer_jax.config > docs/options.md`; `--config.help` prints the same.",
        "",
        "| option | default | value | fixed | |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{key}` | `{default}` | {wanted} | {fixed} | {note} |" for key, default, wanted, fixed, note in _rows()
    ]
    return "\n".join(lines) + "\n"
