"""ZePT (Zero-Shot Pan-Tumor Segmentation, CVPR 2024): organs first, then tumours never annotated.

    python -m launch.train --config=configs/zept.py --workdir=runs/zept \\
        --config.data.stores="('stores/lits','stores/kits')"
    python -m launch.train --config=configs/zept.py:demo --workdir=runs/zept_demo

The first is the paper's (Sec. 4): 96^3 voxels of 1.5 mm, Swin UNETR. `demo` trains both stages on
the built-in phantom cohort in minutes on two CPU cores. Further words change one thing:
`:demo,no_ofg` (an ablation), `:demo,one_stage`.
"""

from ml_collections import ConfigDict

from configs import base, common
from configs.common import Config, Variant

# Names of PhantomCT's labels (docs/phantom.md).
_DEMO_ORGANS = (
    'spleen',
    'right_kidney',
    'left_kidney',
    'liver',
    'stomach',
    'aorta',
    'postcava',
    'pancreas',
    'right_lung',
    'left_lung',
    'colon',
)
_SEEN = ('kidney_tumor', 'liver_tumor')  # Sec. 4
_UNSEEN = ('pancreas_tumor', 'colon_tumor', 'lung_tumor', 'hepatic_vessel_tumor')  # Tab. 1


def get_config(arg: str | None = None) -> Config:
    """Returns the experiment named by `arg`: paper (the default) or demo, then ablation words."""
    config = base.get_base('zept')
    config.stages = ('stage1', 'stage2')
    config.stage1 = _stage('zept_stage1')
    config.stage2 = _stage('zept_stage2')
    config.model.backbone.name = 'swin_unetr'  # Sec. 4
    config.model.backbone.deep_supervision = False
    return common.apply_variants(config, arg, 'paper', VARIANTS)


def _stage(objective: str) -> Config:
    stage = base.stage(objective)
    stage.epochs = 1000  # Sec. 4
    stage.optim.name = 'adamw'  # Sec. 4
    # The numbers of Sec. 4 are lost in print; these are the released code's and its ancestors'.
    stage.optim.learning_rate = 1e-4
    stage.optim.weight_decay = 1e-5
    stage.optim.schedule = 'cosine'  # Sec. 4, with a warm-up
    stage.optim.warmup_epochs = 100
    return stage


def _paper(config: Config) -> None:
    config.data.patch_size = (96, 96, 96)  # at 1.5 mm
    config.data.batch_size = 1  # per GPU; --config.mesh.data and data.batch_size grow together


def _small_network(config: Config) -> None:
    """A network that trains on two CPU cores; whole in every step, small in every size."""
    config.model.backbone.name = 'unet'
    config.model.backbone.base_features = 8
    config.model.backbone.max_features = 128
    config.model.backbone.convs_per_stage = 1
    config.model.zept.output_strides = (8, 4)
    config.model.zept.query_dim = 64
    config.model.zept.refine_dim = 64
    config.model.zept.num_heads = 4


def _demo(config: Config) -> None:
    """Trunks of phantoms: 11 organs, liver and kidney tumours seen, four other kinds unseen.

    Where it leaves the paper's recipe, it is to learn in two thousand steps: a large learning
    rate, masks that start empty, and no augmentation, which would cost steps. Organs are without
    their tumours, which nearly every patient has here. They are those that are large enough for
    voxels of 5 mm.
    """
    _small_network(config)
    config.augment.enabled = False
    config.model.zept.organs = _DEMO_ORGANS
    config.model.zept.mask_prior = 0.01
    config.data.oversample_rate = 1.0  # a patch is half of a trunk: it shows the organs as well
    config.data.oversample_roles = ('tumour',)
    config.data.phantom = ConfigDict(
        {
            'task': 'abdomen',
            'region': 'abdomen',
            'organs': _DEMO_ORGANS,
            'tumours': (*_SEEN, *_UNSEEN),
            'num_train': 160,
            'num_val': 4,
            'num_test_inlier': 8,
            'num_test_ood': 16,
            'shape_zyx': (64, 64, 80),
            'spacing_mm': (5.0, 5.0, 5.0),
            'window_hu': (-175.0, 250.0),  # released code
            'phases': ('venous',),
            'ood_labels': _UNSEEN,
            'seed': 0,
        }
    )
    config.data.patch_size = (48, 48, 48)
    for stage, epochs, rate in ((config.stage1, 20, 5e-3), (config.stage2, 64, 1.5e-3)):
        stage.optim.learning_rate = rate
        stage.optim.betas = (0.9, 0.99)
        stage.optim.clip_norm = 1.0
        stage.loss.organs_hold_tumours = False
        stage.optim.warmup_epochs = 1
        stage.epochs = epochs
        stage.steps_per_epoch = 25
    # A larger rate lets the queries collapse, and their alignment never recovers; the backbone, to
    # which tumours are new, takes it.
    config.stage2.optim.backbone_multiplier = 4.0
    config.checkpoint.every_steps = 100
    config.log.every_steps = 25


def _coarse(config: Config) -> None:
    """The demo in half of its time, for the many trainings of a study: voxels of 6 mm."""
    config.data.phantom.spacing_mm = (6.0, 6.0, 6.0)
    config.data.phantom.shape_zyx = (54, 54, 68)
    config.data.patch_size = (40, 40, 40)
    config.stage1.epochs, config.stage2.epochs = 12, 36


def _one_stage(config: Config) -> None:
    """Stage II from scratch, for as many epochs as both stages have (Tab. 11)."""
    config.stages = ('stage2',)
    config.stage2.epochs += config.stage1.epochs


def _released(config: Config) -> None:
    """What the released code does otherwise, as far as there is a switch for it."""
    config.model.zept.tumours = (
        'kidney_tumour',
        'liver_tumour',
        'pancreas_tumour',
        'hepatic_vessel_tumour',
        'lung_tumour',
        'colon_tumour',
        'kidney_cyst',
    )
    config.model.zept.prompt_source = 'decoder'
    config.model.zept.advanced_init = 'normal'
    config.model.zept.alignment = 'dot'
    config.model.zept.anomaly_logit_bias = True
    _align_all(config)


def _align_all(config: Config) -> None:
    """Also queries of unseen tumours are aligned, as in the released code.

    Eq. 11 aligns the training classes; zero-initialised queries of unseen tumours then stay equal
    to each other to the last bit, which finds such tumours but does not tell their kinds apart.
    """
    config.stage2.loss.align_unseen = True


def _universal(config: Config) -> None:
    """The Universal Model on the same backbone, for as many epochs as both stages have."""
    config.stages = ('universal',)
    config.universal = config.stage1.copy_and_resolve_references()
    config.universal.objective = 'universal'
    config.universal.epochs += config.stage2.epochs
    config.model.zept.knowledge = 'minilm_plain'  # its prompt


def _nnunet(config: Config) -> None:
    """The backbone with a softmax over the seen classes, for as many epochs as stage I."""
    config.stages = ('pretrain',)
    config.pretrain = config.stage1.copy_and_resolve_references()
    config.pretrain.objective = 'segmentation'


def _nnunet_long(config: Config) -> None:
    """The same, for as many epochs as both stages have."""
    _nnunet(config)
    config.pretrain.epochs += config.stage2.epochs


def _maxquery(config: Config) -> None:
    """MaxQuery in the zero-shot protocol (Tab. 1)."""
    _nnunet(config)
    config.stages = ('pretrain', 'finetune')
    config.finetune = config.stage2.copy_and_resolve_references()
    config.finetune.objective = 'maxquery'
    config.finetune.loss.qd_weight = 0.1
    config.finetune.optim.backbone_multiplier = 0.1
    if config.data.phantom:
        config.model.decoder.output_strides = config.model.zept.output_strides
        config.model.decoder.query_dim = 64
        config.model.decoder.embed_dim = 32
        config.model.decoder.ffn_dim = 256


def _synthcp(config: Config) -> None:
    """SynthCP in the zero-shot protocol (Tab. 1)."""
    _nnunet(config)
    config.stages = ('pretrain', 'synth')
    config.synth = base.synthcp_stage()
    if config.data.phantom:
        base.shorten_synthcp(config.synth, config.stage2)


def _whole_organs(config: Config) -> None:
    """Organs with their tumours, as the paper's data sets that show tumours have them."""
    for stage in (config.stage1, config.stage2):
        stage.loss.organs_hold_tumours = True


def _zept(**values: object) -> Variant:
    """Changes fields of `model.zept`."""

    def variant(config: Config) -> None:
        config.model.zept.update(values)

    return variant


def _train_on(*seen: str) -> Variant:
    """Another choice of the tumours that training shows (Tab. 13), in the phantom cohort."""

    def variant(config: Config) -> None:
        tumours = config.data.phantom.tumours
        config.data.phantom.ood_labels = tuple(name for name in tumours if name not in seen)

    return variant


VARIANTS = {
    'paper': _paper,
    'demo': _demo,
    'coarse': _coarse,
    'no_ofg': _zept(ofg=False),  # Tab. 4
    'no_qrd': _zept(qrd=False),
    'no_pma': _zept(pma=False),
    'no_qka': _zept(qka=False),
    'whole_organs': _whole_organs,
    'align_all': _align_all,
    'one_stage': _one_stage,  # Tab. 11
    'groupvit': _zept(grouping='groupvit'),  # Tab. 12
    'soft_grouping': _zept(grouping='soft'),
    'plain_prompt': _zept(knowledge='minilm_plain'),  # Tab. 10
    'name_prompt': _zept(knowledge='minilm_names'),
    'prompt_of_decoder': _zept(prompt_source='decoder'),  # released code
    'prompt_of_mask': _zept(prompt_source='mask'),
    'prompt_of_box': _zept(prompt_source='box'),  # Tab. 5
    'released': _released,
    **{f'threshold_{n}': _zept(threshold=n / 10) for n in (1, 3, 7, 9)},  # Fig. 6
    'seen_lung_kidney': _train_on('lung_tumor', 'kidney_tumor'),  # Tab. 13
    'seen_lung_liver': _train_on('lung_tumor', 'liver_tumor'),
    'seen_pancreas_liver': _train_on('pancreas_tumor', 'liver_tumor'),
    'seen_pancreas_liver_kidney': _train_on('pancreas_tumor', *_SEEN),
    'seen_pancreas_liver_kidney_lung': _train_on('pancreas_tumor', 'lung_tumor', *_SEEN),
    'supervised': _train_on(*_SEEN, *_UNSEEN),  # Tab. 14
    'universal': _universal,
    'nnunet': _nnunet,
    'nnunet_long': _nnunet_long,
    'maxquery': _maxquery,
    'synthcp': _synthcp,
}
