"""Conditions on several options of a config together."""

PROCESS_KEYS = ("parallel.coordinator", "parallel.num_processes", "parallel.process_id")

# Each entry: the options, the condition on their values, and the requirement on the first, a template for the values.
COMBINATIONS = [
    (
        ("optimizer.warmup_epochs", "num_epochs"),
        lambda warmup, epochs: warmup < epochs,
        "it must be less than config.num_epochs, {1}",
    ),
    (
        ("batch_size", "train.grad_accum_steps"),
        lambda batch_size, microbatches: batch_size % microbatches == 0,
        "it must be a multiple of config.train.grad_accum_steps, {1}",
    ),
    (
        ("augment.crop", "dataset.image_size"),
        lambda crop, size: crop is None or crop <= size,
        "it must be at most config.dataset.image_size, {1}",
    ),
    (
        ("evaluation.view", "augment.crop"),
        lambda view, crop: crop is not None or "crop" not in view,
        "it shows crops, whose size config.augment.crop says, and that is not set",
    ),
    (
        ("evaluation.report_views", "augment.crop"),
        lambda views, crop: views is None or crop is not None or "crop" not in views,
        "it shows crops, whose size config.augment.crop says, and that is not set",
    ),
    (
        ("augment.flip", "augment.alternating_flip"),
        lambda flip, is_alternating: flip == 0.5 or not is_alternating,
        "it must be 0.5 with config.augment.alternating_flip, which flips half of the images",
    ),
    (
        ("mix.off_epochs", "num_epochs"),
        lambda off, epochs: off <= epochs,
        "it must be at most config.num_epochs, {1}",
    ),
    (
        ("dataset.path", "dataset.source"),
        lambda path, source: path is None or source != "embedded",
        "it must be left out where config.dataset.source is {1!r}, which reads no files",
    ),
    (
        ("dataset.classes", "dataset.source"),
        lambda classes, source: classes != "folders" or source != "embedded",
        "it must be fer2013 where config.dataset.source is {1!r}, which has no folders",
    ),
    (
        ("dataset.ferplus", "dataset.source"),
        lambda ferplus, source: ferplus is None or source != "embedded",
        "it must be left out where config.dataset.source is {1!r}: FER+ has votes on FER-2013's images only",
    ),
    (
        ("dataset.ferplus", "dataset.classes"),
        lambda ferplus, classes: ferplus is None or classes != "folders",
        "it must be left out where config.dataset.classes is {1!r}: FER+ has votes on FER-2013's images only",
    ),
    (
        ("dataset.ferplus_target_weight", "dataset.ferplus"),
        lambda weight, ferplus: weight == 0 or ferplus is not None,
        "it must be 0 where config.dataset.ferplus is unset",
    ),
    (
        ("dataset.ferplus_task", "dataset.ferplus"),
        lambda task, ferplus: task == "none" or ferplus is not None,
        "it must be none where config.dataset.ferplus is unset",
    ),
    (
        ("dataset.ferplus_target_weight", "dataset.ferplus_task"),
        lambda weight, task: weight == 0 or task == "none",
        "it must be 0 where config.dataset.ferplus_task is {1!r}, which trains on FER+'s labels alone",
    ),
    *(
        (
            (mixing, "dataset.ferplus_task"),
            lambda alpha, task: alpha == 0 or task != "majority",
            "it must be 0 where config.dataset.ferplus_task is {1!r}, whose images have one label each; 'soft' mixes",
        )
        for mixing in ("mix.mixup", "mix.cutmix")
    ),
    (
        PROCESS_KEYS,
        lambda *values: None not in values or not any(value is not None for value in values),
        "it and config.parallel.num_processes, {1}, and config.parallel.process_id, {2}, must be set together",
    ),
    (
        ("parallel.process_id", "parallel.num_processes"),
        lambda process, number: process is None or number is None or process < number,
        "it must be less than config.parallel.num_processes, {1}",
    ),
]
