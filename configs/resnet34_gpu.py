"""A network as strong as an hour of training on one H100 allows: a ResNet-34 of width 96 at full resolution.

    python -m fer_jax.main --config=configs/resnet34_gpu.py --data=fer2013.csv

This config hasn't been run yet, since no accelerator was available. It was lowered for CUDA, and a network of fewer
blocks and a fraction of its width was trained for 50 steps with all other options (tests/end_to_end/test_configs.py).
The network has 47.9 M parameters, and training on an image takes 31 GFLOP: 176 PFLOP in total, which at 100 TFLOP/s
would be half an hour. A step of 256 images takes 11.7 GB, of which the state takes 0.6 GB, by memory_analysis() of the
test's program with a batch of images, compiled for CPU.
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
        # No mixing in the last epochs, so that training ends on unmixed images.
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
        # The learning rate falls to zero at the end, so the last epochs are the best ones.
        early_stopping={"patience": num_epochs},
        train={"steps_per_call": 8},
    )
