"""The baseline: ResNet-50 on FER-2013 with Adam at 0.001, batch 64, up to 25 epochs, early stopping.

    python -m fer_jax.main --config=configs/resnet50.py

Uses data/fer2013.csv or data/icml_face_data.csv where present, else the embedded data set;
`--config.dataset.path=FILE_OR_FOLDER` names other data. On the embedded set: 7 minutes on two CPU cores, installation
included, and a test accuracy of 93.43 %. On FER-2013: 45 minutes and a PublicTest accuracy of 59.43 %
(60.27 % with seed 1).
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.seed = 0
    config.num_epochs = 25
    config.batch_size = 64  # over all devices and hosts

    config.dataset = config_dict.ConfigDict()
    config.dataset.source = "auto"  # 'auto', 'fer2013' or 'embedded'
    config.dataset.path = config_dict.placeholder(str)  # fer2013.csv, icml_face_data.csv (.gz) or a folder
    config.dataset.cache_dir = "data/prepared"  # where FER-2013 is prepared, once

    config.dataset.loader = "tf.data"  # or 'device': the data set is on every device, and batches are indices

    config.augment = config_dict.ConfigDict()
    config.augment.flip = 0.5  # probability of a horizontal flip
    config.augment.rotation = 10.0  # degrees, at most, either way
    config.augment.zoom = 0.1  # in or out, at most, as a fraction of the size
    config.augment.shift = 0.0  # at most, either way, as a fraction of the size

    config.model = config_dict.ConfigDict()
    config.model.depth = 50  # 18, 34, 50, 101 or 152
    config.model.width = 64  # channels of the first stage
    config.model.stem_kernel = 7
    config.model.stem_stride = 2
    config.model.stem_pool = True
    config.model.zero_init = False  # the last scale of each block starts at zero
    config.model.dtype = "bfloat16"  # of the computation; parameters stay float32
    config.model.sync_batch_norm = True  # statistics over the global batch rather than each device's part
    config.model.conv = "auto"  # 'auto' (by backend), 'lax' or 'matmul'
    config.model.remat = False  # compute each block again for its gradient: less memory, a third more work

    config.train = config_dict.ConfigDict()
    config.train.accumulate_steps = 1  # parts of the batch that go through the network one after the other
    config.train.steps_per_call = 1  # steps that one call of the compiled program takes
    config.train.skip_nonfinite = config_dict.placeholder(int)  # leave out at most so many broken steps in a row

    config.optimizer = config_dict.ConfigDict()
    config.optimizer.learning_rate = 0.001
    config.optimizer.schedule = "constant"  # 'constant' or 'cosine', after the warm-up
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.weight_decay = 0.0  # decoupled, on kernels only
    config.optimizer.clip_norm = config_dict.placeholder(float)  # of the global gradient
    config.optimizer.label_smoothing = 0.0

    config.early_stopping = config_dict.ConfigDict()
    config.early_stopping.patience = 10  # epochs in a row without a better validation accuracy
    config.early_stopping.min_delta = 0.0  # what counts as better

    config.parallel = config_dict.ConfigDict()
    config.parallel.mapper = "shard_map"  # 'shard_map' or 'pmap'
    config.parallel.distributed = config_dict.placeholder(bool)  # several processes; unset: if a launcher says so
    config.parallel.coordinator = config_dict.placeholder(str)  # host:port of process 0, where no launcher says it
    config.parallel.num_processes = config_dict.placeholder(int)
    config.parallel.process_id = config_dict.placeholder(int)
    config.parallel.reduce_dtype = "float32"  # of gradients on their way between devices; or 'bfloat16'

    config.checkpoint = config_dict.ConfigDict()
    config.checkpoint.every_steps = config_dict.placeholder(int)  # also within an epoch; its end always saves

    config.log = config_dict.ConfigDict()
    config.log.every_steps = 50
    config.log.profile_steps = config_dict.placeholder(int)  # trace so many steps into the workdir's profile/
    return config.lock()
