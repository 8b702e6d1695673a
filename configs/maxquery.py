"""MaxQuery (Devil is in the Queries, CVPR 2023): nnU-Net pre-training, then query fine-tuning.

    python -m launch.train --config=configs/maxquery.py:pancreas --workdir=runs/pancreas \\
        --config.data.store=stores/pancreas
    python -m launch.train --config=configs/maxquery.py:liver --workdir=runs/liver \\
        --config.data.store=stores/liver
    python -m launch.train --config=configs/maxquery.py:demo --workdir=runs/demo

The first two are the paper's (Sec. 4.2). `demo` trains the same stages on the built-in phantom
cohort in minutes on two CPU cores; `small` is its network for a store of your own. Further words
change one thing: `:demo,no_qd` (an ablation), `:demo,nnunet` (a baseline).
"""

from ml_collections import ConfigDict

from configs import base, common
from configs.common import Config, Variant


def get_config(arg: str | None = None) -> Config:
    """Returns the experiment named by `arg`: pancreas, liver or demo, then ablation words."""
    config = base.get_base('maxquery')
    config.stages = ('pretrain', 'finetune')
    config.pretrain = _pretrain()
    config.finetune = _finetune()
    return common.apply_variants(config, arg, 'pancreas', VARIANTS)


def _pretrain() -> Config:
    stage = base.stage('segmentation')
    stage.epochs = 1000  # Sec. 4.2; nnU-Net counts 250 iterations as an epoch
    return stage


def _finetune() -> Config:
    stage = base.stage('maxquery')
    stage.epochs = 200  # Sec. 4.2
    stage.optim.name = 'radam'  # Sec. 4.2
    stage.optim.learning_rate = 1e-4  # Sec. 4.2
    stage.optim.weight_decay = 1e-4  # not in the paper; the same team's PLAN code
    stage.optim.frozen_epochs = 50  # Sec. 4.2
    stage.optim.backbone_multiplier = 0.1  # Sec. 4.2
    stage.loss.qd_weight = 0.1  # lambda, Sec. 4.2
    return stage


def _pancreas(config: Config) -> None:
    config.data.patch_size = (28, 192, 320)  # Sec. 4.2, at 3 x 0.419 x 0.419 mm


def _liver(config: Config) -> None:
    config.data.patch_size = (40, 192, 224)  # Sec. 4.2, at 3 x 0.760 x 0.760 mm


def _small_network(config: Config) -> None:
    """A network that trains on two CPU cores; whole in every step, small in every size."""
    config.model.backbone.base_features = 8
    config.model.backbone.max_features = 128
    config.model.backbone.convs_per_stage = 1
    config.model.backbone.feature_size = 12
    config.model.backbone.window_size = 4
    config.model.backbone.depths = (2, 2, 2)
    config.model.backbone.num_heads = (3, 6, 12)
    config.model.backbone.transformer_layers = 4
    config.model.backbone.transformer_dim = 128
    config.model.backbone.transformer_heads = 4
    config.model.decoder.output_strides = (8, 4)
    config.model.decoder.query_dim = 64
    config.model.decoder.embed_dim = 32
    config.model.decoder.ffn_dim = 256
    config.finetune.optim.learning_rate = 3e-3  # hundreds of steps instead of 50,000
    config.log.every_steps = 25


def _demo(config: Config) -> None:
    """A liver cohort of phantoms with 5 known and 3 unknown tumour types.

    Where it leaves the paper's recipe, it is to learn tumours in hundreds of steps: a large
    learning rate, every patch around a tumour, and no augmentation, since no case is seen more
    than some dozen times.
    """
    _small_network(config)
    config.model.backbone.base_features = 16
    config.augment.enabled = False
    config.data.oversample_rate = 1.0
    config.data.oversample_roles = ('tumour',)
    for stage in (config.pretrain, config.finetune):
        stage.optim.name = 'radam'
        stage.optim.learning_rate = 3e-2
    config.data.phantom = ConfigDict(
        {
            'task': 'liver',
            'num_train': 24,
            'num_val': 2,
            'num_test_inlier': 6,
            'num_test_ood': 6,
            'shape_zyx': (32, 64, 64),
            'spacing_mm': (5.0, 4.0, 4.0),
            'phases': ('noncontrast', 'arterial_late', 'venous'),  # Sec. 4.1, liver
            'seed': 0,
        }
    )
    config.data.patch_size = (24, 48, 48)
    config.pretrain.epochs = 5
    config.pretrain.steps_per_epoch = 30
    config.finetune.epochs = 6
    config.finetune.steps_per_epoch = 20
    config.finetune.optim.frozen_epochs = 2
    config.checkpoint.every_steps = 100


def _long(config: Config) -> None:
    """Four times the cases of the demo and seven times its steps, for studies."""
    config.data.phantom.num_train = 96
    config.data.phantom.num_val = 8
    config.data.phantom.num_test_inlier = 16
    config.data.phantom.num_test_ood = 16
    config.pretrain.epochs = 40
    config.finetune.epochs = 30
    config.finetune.optim.frozen_epochs = 6
    config.validation.every_steps = 100


def _longer(config: Config) -> None:
    """Four times the fine-tuning; before `nnunet_longer`, that as much longer too."""
    config.finetune.epochs *= 4
    config.finetune.optim.frozen_epochs *= 4


def _small(config: Config) -> None:
    """Own data on a CPU, prepared at about 4 mm."""
    _small_network(config)
    config.data.patch_size = (48, 80, 80)
    config.pretrain.epochs = 20
    config.pretrain.steps_per_epoch = 50
    config.finetune.epochs = 20
    config.finetune.steps_per_epoch = 50
    config.finetune.optim.frozen_epochs = 5
    config.checkpoint.every_steps = 250


def _nnunet(config: Config) -> None:
    """The backbone alone: the pre-training, which is all that the paper's nnU-Net had."""
    config.stages = ('pretrain',)


def _nnunet_longer(config: Config) -> None:
    """The backbone alone, for as many further steps as the fine-tuning has."""
    config.stages = ('pretrain', 'extend')
    config.extend = config.pretrain.copy_and_resolve_references()
    config.extend.epochs = config.finetune.epochs
    config.extend.steps_per_epoch = config.finetune.steps_per_epoch


def _mc_dropout(config: Config) -> None:
    _nnunet(config)
    config.model.backbone.dropout_rate = 0.5


def _synthcp(config: Config) -> None:
    """nnU-Net, then a network that draws the image from the labels (SynthCP)."""
    config.stages = ('pretrain', 'synth')
    config.synth = base.synthcp_stage()
    if config.data.phantom:
        base.shorten_synthcp(config.synth, config.finetune)


def _swin_unetr(config: Config) -> None:
    _nnunet(config)
    config.model.backbone.name = 'swin_unetr'
    config.model.backbone.deep_supervision = False  # as published


def _transunet(config: Config) -> None:
    _nnunet(config)
    config.model.backbone.name = 'transunet'


def _no_qd(config: Config) -> None:
    config.finetune.loss.qd_weight = 0.0  # Tab. 1, "Ours (w/o L_qd)"


def _no_ds(config: Config) -> None:
    """Only the final prediction is supervised, not those of the decoder's blocks."""
    config.model.decoder.deep_supervision = False


def _joint(config: Config) -> None:
    """Backbone and queries from scratch in one stage of as many epochs as both have."""
    pretrain, finetune = config.pretrain, config.finetune
    steps = pretrain.epochs * pretrain.steps_per_epoch
    finetune.epochs += steps // finetune.steps_per_epoch
    finetune.optim.frozen_epochs = 0
    finetune.optim.backbone_multiplier = 1.0
    config.stages = ('finetune',)


def _l2(config: Config) -> None:
    config.model.decoder.pixel_norm = 'l2'  # of kMaX-DeepLab: unit length per voxel of P


def _blocks(number: int) -> Variant:
    """`number` decoder blocks, from the coarsest output stride on."""

    def variant(config: Config) -> None:
        coarsest = config.model.decoder.output_strides[0]
        config.model.decoder.output_strides = tuple(coarsest >> i for i in range(number))

    return variant


def _groups(*groups: int) -> Variant:
    """Another query distribution (N1, N2, N3), Tab. 3."""

    def variant(config: Config) -> None:
        config.model.decoder.query_groups = groups

    return variant


VARIANTS = {
    'pancreas': _pancreas,
    'liver': _liver,
    'demo': _demo,
    'small': _small,
    'long': _long,
    'longer': _longer,
    'nnunet': _nnunet,
    'nnunet_longer': _nnunet_longer,
    'mc_dropout': _mc_dropout,
    'synthcp': _synthcp,
    'swin_unetr': _swin_unetr,
    'transunet': _transunet,
    'no_qd': _no_qd,
    'no_ds': _no_ds,
    'joint': _joint,
    'l2': _l2,
    **{f'blocks{number}': _blocks(number) for number in (1, 2, 3, 4)},
    **{
        f'groups_{"_".join(map(str, groups))}': _groups(*groups)
        for groups in ((8, 4, 20), (8, 20, 4), (16, 4, 12), (20, 4, 8), (24, 4, 4))
    },
}
