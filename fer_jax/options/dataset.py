"""The options of config.dataset: the rows of the table of options that define the dataset."""

from fer_jax.options.option import (
    PATH,
    PROBABILITY,
    SEED,
    SIZE,
    SWITCH,
    Option,
    one_of,
)

DATASET: dict[str, Option] = {
    # The files may be moved, so a run's dataset is compared by its fingerprint, which covers the hold-out and FER+ too.
    "dataset.source": Option(
        "auto",
        str,
        one_of("auto", "fer2013", "embedded"),
        "The files of FER-2013, the embedded dataset or, with auto, the files if there are any.",
        changes_results=False,
    ),
    "dataset.path": Option(
        None,
        str,
        PATH,
        "A FER-2013 csv (or .gz), or a folder of csv files or of images. Unset: the usual files in data/.",
        changes_results=False,
        optional=True,
    ),
    "dataset.classes": Option(
        "fer2013",
        str,
        one_of("fer2013", "folders"),
        "The classes: FER-2013's seven or, with folders, the sorted names of the class folders.",
        changes_results=False,
    ),
    "dataset.image_size": Option(48, int, SIZE, "Height and width of the images in pixels.", changes_results=False),
    "dataset.resize": Option(
        False,
        bool,
        SWITCH,
        "Resize images of other sizes and depths to image_size instead of refusing them.",
        changes_results=False,
    ),
    "dataset.cache_dir": Option(
        None,
        str,
        PATH,
        "Folder for prepared data. Unset: fer_jax/prepared in the user's cache (XDG_CACHE_HOME).",
        changes_results=False,
        optional=True,
    ),
    "dataset.split_seed": Option(
        0, int, SEED, "Seed of the held-out validation images, if the files have none.", changes_results=False
    ),
    "dataset.ferplus": Option(
        None, str, PATH, "FER+'s fer2013new.csv, joined by row.", changes_results=False, optional=True
    ),
    "dataset.ferplus_target_weight": Option(
        0.0,
        float,
        PROBABILITY,
        "Share of FER+'s votes in the training target; the label has the rest.",
        changes_results=False,
    ),
    "dataset.ferplus_task": Option(
        "none",
        str,
        one_of("none", "majority", "soft"),
        "Train on FER+'s eight classes: the majority's label, or soft targets.",
        changes_results=False,
    ),
    "dataset.loader": Option(
        "tf.data",
        str,
        one_of("tf.data", "device"),
        "tf.data sends images to the devices; device keeps the dataset there and sends indices.",
        changes_results=False,
    ),
}
