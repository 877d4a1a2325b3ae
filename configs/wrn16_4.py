"""A Wide-ResNet-16-4 for two CPU cores: three stages of two basic blocks with 64, 128 and 256 channels.

    python -m fer_jax.main --config=configs/wrn16_4.py --data=fer2013.csv

It is trained by SGD with Nesterov momentum and a cosine schedule, on random crops of 40 pixels, with label smoothing
and a moving average of the weights. 40 epochs take 30 minutes on two cores of an AMD EPYC, Zen 5, in bfloat16, and
reach 68.1 % of PublicTest and 69.4 % of PrivateTest (means of three seeds, +- 0.8 and 0.9). docs/results.md gives the
effect of its ingredients.
"""

from ml_collections import config_dict

from fer_jax.config import make_config


def get_config() -> config_dict.ConfigDict:
    num_epochs = 40
    return make_config(
        seed=0,
        num_epochs=num_epochs,
        batch_size=128,
        preprocessing={"standardize": True},
        augment={"flip": 0.5, "rotation": 10.0, "zoom": 0.1, "crop": 40},
        model={
            "depth": 18,
            "stages": 3,
            "width": 64,
            "stem_kernel": 3,
            "stem_stride": 1,
            "stem_pool": True,
            "zero_init": True,
        },
        optimizer={
            "name": "sgd",
            "learning_rate": 0.1,
            "schedule": "cosine",
            "warmup_epochs": 2.0,
            "weight_decay": 5e-4,
        },
        loss={"label_smoothing": 0.1},
        ema={"half_life": 1.0},
        evaluation={"report_views": "centre_crop,whole,whole_mirrored,ten_crops"},
        # The learning rate falls to zero at the end, so the last epochs are the best ones.
        early_stopping={"patience": num_epochs},
        train={"steps_per_call": 8},
    )
