"""The baseline: ResNet-50 on FER-2013 with Adam at 0.001, batch 64, up to 25 epochs, early stopping.

    python -m fer_jax.main --config=configs/resnet50.py

It uses data/fer2013.csv or data/icml_face_data.csv if present, otherwise the embedded dataset;
`--config.dataset.path=FILE_OR_FOLDER` selects other data. On two CPU cores with bfloat16 arithmetic (Zen 5), the
embedded dataset takes 3 to 4 minutes, installation included, and reaches a test accuracy of 97.14 %. FER-2013 takes 33
minutes and reaches 59.35 % of PublicTest (60.96 % with seed 1) and 60.10 % of PrivateTest (61.52 %), by commit bf5f612.

The values below define the experiment. docs/options.md and --config.help describe all options.
"""

from ml_collections import config_dict

from fer_jax.config import make_config


def get_config() -> config_dict.ConfigDict:
    return make_config(
        seed=0,
        num_epochs=25,
        batch_size=64,
        augment={"flip": 0.5, "rotation": 10.0, "zoom": 0.1, "shift": 0.0},
        model={
            "depth": 50,
            "width": 64,
            "stem_kernel": 7,
            "stem_stride": 2,
            "stem_pool": True,
            "zero_init": False,
            "dtype": "auto",
            "sync_batch_norm": True,
        },
        optimizer={"learning_rate": 0.001, "schedule": "constant", "warmup_epochs": 0.0, "weight_decay": 0.0},
        loss={"label_smoothing": 0.0},
        early_stopping={"patience": 10, "min_delta": 0.0},
    )
