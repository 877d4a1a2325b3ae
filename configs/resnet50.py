"""The baseline: ResNet-50 on FER-2013 with Adam at 0.001, batch 64, up to 25 epochs, early stopping.

    python -m fer_jax.main --config=configs/resnet50.py

Uses data/fer2013.csv or data/icml_face_data.csv where present, else the embedded data set;
`--config.dataset.path=FILE_OR_FOLDER` names other data. On two CPU cores with bfloat16 arithmetic (Zen 5): on the
embedded set 3 to 4 minutes, installation included, and a test accuracy of 97.14 %; on FER-2013 33 minutes, a PublicTest
accuracy of 59.35 % (60.96 % with seed 1) and a PrivateTest accuracy of 60.10 % (61.52 %), by commit bf5f612.

These values make the experiment. All other options, and what each means: docs/options.md, or --config.help.
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
