"""One network as strong as an hour of one H100 can make it: a ResNet-34 of width 96 at full resolution.

    python -m fer_jax.main --config=configs/resnet34_gpu.py --data=fer2013.csv

Not run yet: no accelerator was at hand. It was lowered for CUDA, and a network of fewer blocks and a fraction of its
width was trained with all its other options for 50 steps (tests/end_to_end/test_configs.py). 47.9 M parameters and 31
GFLOP to train on an image: 176 PFLOP in all, which at 100 TFLOP/s would be half an hour. A step of 256 images takes
11.7 GB, 0.6 of them the state, by memory_analysis() of the test's program with a batch of images, compiled for CPU.
"""

from ml_collections import config_dict

from fer_jax.config import make_config


def get_config() -> config_dict.ConfigDict:
    num_epochs = 200
    return make_config(
        seed=0,
        num_epochs=num_epochs,
        batch_size=256,
        dataset={"loader": "device"},
        preprocessing={"standardize": True},
        augment={"flip": 0.5, "rotation": 15.0, "zoom": 0.2, "crop": 44, "erasing": 0.5},
        # None in the last epochs, so that the network ends on images as they are.
        mix={"mixup": 0.2, "probability": 0.5, "off_epochs": 20},
        model={
            "depth": 34,
            "width": 96,
            "stem_kernel": 3,
            "stem_stride": 1,
            "stem_pool": False,
            "zero_init": True,
            "squeeze_excitation": True,
            "stochastic_depth": 0.1,
            "dropout": 0.2,
        },
        optimizer={
            "name": "sgd",
            "learning_rate": 0.2,
            "schedule": "cosine",
            "warmup_epochs": 5.0,
            "weight_decay": 5e-4,
        },
        loss={"label_smoothing": 0.1},
        ema={"half_life": 2.0},
        evaluation={"report_views": "centre_crop,whole,whole_mirrored,ten_crops"},
        # The rate falls to zero at the end, so the last epochs are the best ones.
        early_stopping={"patience": num_epochs},
        train={"steps_per_call": 8},
    )
