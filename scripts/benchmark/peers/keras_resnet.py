"""ResNet v1.5 in Keras 3 on TensorFlow, as a functional model; with XLA or without, float32 or mixed bfloat16."""

import os
from collections.abc import Callable
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf
from keras import layers

from fer_jax.data.dataset import CLASS_NAMES
from scripts.benchmark.peers import ARCHITECTURES, make_batch

PACKAGES = ("keras", "tensorflow")


def conv_norm(x, features: int, kernel: int, stride: int = 1):
    # With a stride, the padding 'same' is not symmetric.
    if stride > 1 and kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2)(x)
    padding = "same" if stride == 1 else "valid"
    initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    x = layers.Conv2D(features, kernel, stride, padding, use_bias=False, kernel_initializer=initializer)(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)


def block(x, width: int, stride: int, *, bottleneck: bool):
    features = 4 * width if bottleneck else width
    y = layers.ReLU()(conv_norm(x, width, 1)) if bottleneck else x
    y = layers.ReLU()(conv_norm(y, width, 3, stride))
    y = conv_norm(y, features, 1 if bottleneck else 3)
    if x.shape != y.shape:
        x = conv_norm(x, features, 1, stride)
    return layers.ReLU()(x + y)


def resnet(
    image_size: int, *, depth: int, stages: int, width: int, stem_kernel: int, stem_stride: int, stem_pool: bool
) -> keras.Model:
    """Builds the network: uint8 [batch, image_size, image_size, 1] -> logits float32 [batch, 7]."""
    stage_sizes, bottleneck = ARCHITECTURES[depth]
    images = keras.Input((image_size, image_size, 1), dtype="uint8")
    x = layers.ReLU()(conv_norm(layers.Rescaling(1 / 255)(images), width, stem_kernel, stem_stride))
    if stem_pool:
        x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for stage, num_blocks in enumerate(stage_sizes[:stages]):
        for number in range(num_blocks):
            x = block(x, width * 2**stage, 2 if stage and not number else 1, bottleneck=bottleneck)
    x = layers.GlobalAveragePooling2D(dtype="float32")(x)
    return keras.Model(images, layers.Dense(len(CLASS_NAMES), dtype="float32")(x))


def make(spec: dict) -> tuple[Callable[[], Any], int]:
    """Returns a function that does the work once and returns its result, and the network's number of parameters.

    spec: {task: 'step' or 'inference', batch, image_size, net: of NETS, dtype, xla}.
    """
    keras.config.set_dtype_policy("mixed_bfloat16" if spec["dtype"] == "bfloat16" else "float32")
    model = resnet(spec["image_size"], **spec["net"])
    images, labels = map(tf.constant, make_batch(spec["batch"], spec["image_size"]))
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=spec["xla"],
    )
    # This avoids predict_on_batch's checks, which take a notable share of the time of a single image.
    predict = tf.function(lambda images: model(images, training=False), jit_compile=spec["xla"])
    run = {"step": lambda: model.train_on_batch(images, labels), "inference": lambda: predict(images).numpy()}
    return run[spec["task"]], sum(weight.shape.num_elements() for weight in model.trainable_weights)
