"""Fields that every experiment has, with their defaults. Paper numbers live in the experiments."""

from ml_collections import ConfigDict

from configs.common import Config


def get_base(name: str) -> Config:
    """Returns the complete set of fields; experiments change values, they do not add fields."""
    config: Config = ConfigDict()
    config.name = name
    config.variant = ''
    config.seed = 0
    config.data = _data()
    config.augment = ConfigDict({'enabled': True})
    config.model = _model()
    config.stages = ()
    # Mesh axis sizes; -1 takes the devices that are left (DESIGN section 8).
    config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'spatial': 1})
    # `best`: a value of validation, such as dice_mean; the checkpoint where it was largest stays
    # beside the newest ones and is saved at the validation itself. '' keeps the newest only.
    config.checkpoint = ConfigDict({'every_steps': 1000, 'keep': 2, 'best': ''})
    config.log = ConfigDict({'every_steps': 50})
    config.validation = ConfigDict({'every_steps': 0, 'batches': 8})
    return config


def _data() -> Config:
    data: Config = ConfigDict()
    data.store = ''  # folder or URL written by launch.prepare
    # Several stores with one label table, spacing, channels and intensity window, instead of
    # data.store; the first one's splits are those that predict and evaluate use.
    data.stores = ()
    data.weights = ()  # share of the samples per store; () for its share of the cases
    # A built-in cohort to generate instead of reading a store: fields of phantom.CohortSpec, and
    # window_hu, which its store is prepared with (launch.prepare --window).
    data.phantom = ConfigDict()
    data.patch_size = (0, 0, 0)  # voxels (z, y, x)
    data.batch_size = 2
    # k-fold cross-validation over the cases of train and val: this fold validates, the others
    # train; -1 is the store's own split. The test cases never move.
    data.fold = -1
    data.num_folds = 5
    data.oversample_rate = 1 / 3  # nnU-Net: share of samples centred on foreground
    data.oversample_roles = ('organ', 'tumour')  # roles of the classes drawn there
    data.num_workers = 0
    data.num_threads = 2
    data.prefetch = 4
    return data


def _model() -> Config:
    model: Config = ConfigDict()
    model.dtype = 'float32'  # compute; parameters, norms and losses are float32
    # What is kept for the backward pass: none (recomputes nothing) | norms | blocks (least memory).
    model.remat = 'none'
    # plain | scan | planes | auto: scan on one CPU device at real sizes, planes on TPUs.
    model.conv_form = 'auto'
    model.backbone = ConfigDict(
        {
            'name': 'unet',  # unet | swin_unetr | transunet
            'base_features': 32,
            'max_features': 320,
            'convs_per_stage': 2,
            'max_stages': 0,  # 0: as many as the topology rule gives
            'deep_supervision': True,
            'dropout_rate': 0.0,  # in the deepest stages; > 0 gives the score mc_entropy
            'dropout_passes': 20,  # of mc_entropy; the reference takes 50
            # Swin UNETR (Tang et al., CVPR 2022), read by it alone.
            'feature_size': 48,
            'window_size': 7,
            'depths': (2, 2, 2, 2),
            'num_heads': (3, 6, 12, 24),
            # MONAI's merging (today's), mergingv2, or legacy (its error, for weights before 2025).
            'patch_merging': 'merging',
            'residual_conv': False,  # before every stage: Swin UNETR V2
            # TransUNet: blocks of ViT-B over the coarsest features of the U-Net.
            'transformer_layers': 12,
            'transformer_dim': 768,
            'transformer_heads': 12,
        }
    )
    model.decoder = ConfigDict(
        {
            'num_queries': 32,
            'query_groups': (16, 4, 12),
            'output_strides': (32, 16, 8, 4),
            'query_dim': 256,
            'embed_dim': 128,
            'num_heads': 8,
            'ffn_dim': 2048,
            'drop_path': 0.2,
            'deep_supervision': True,
            'pixel_stride': (1, 1, 1),
            'pixel_norm': 'instance',  # the paper's; 'l2' is kMaX-DeepLab's
            'self_attention_input': 'pre',
            'kmeans_reduction': 'sum',
        }
    )
    model.zept = ConfigDict(
        {
            # Names of the queries; () for the 25 organs and 20 tumours of ZePT Table 8.
            'organs': (),
            'tumours': (),
            'knowledge': 'minilm_descriptions',  # shipped name or file of launch.embed_text
            'output_strides': (32, 16, 8, 4),
            'query_dim': 768,
            'refine_dim': 768,
            'num_heads': 8,
            'mlp_ratio': 4,
            'mask_prior': 0.5,  # probability that masks start at; 0.5 adds no parameter
            'threshold': 0.5,  # of the normalised anomaly maps, Eq. 8
            'box_margin': 5.0,  # voxels by which box prompts are relaxed, Tab. 5
            'prompt_source': 'encoder',  # encoder | decoder (released code) | mask | box
            'advanced_init': 'zeros',  # zeros | normal (released code)
            'ofg': True,
            'grouping': 'hard',  # hard | soft | groupvit (Tab. 12)
            'qrd': True,
            'pma': True,
            'qka': True,
            'alignment': 'cosine',  # cosine | dot (released code)
            'temperature': 0.07,
            'anomaly_logit_bias': False,  # released code
            'freeze_stage1': False,  # older released code
        }
    )
    model.synthcp = ConfigDict(  # label-to-image network of the baseline SynthCP
        {
            'base_features': 16,  # of the generator at the input's resolution; doubles per stage
            'max_features': 64,
            'label_features': 16,  # hidden layer of a SPADE norm
            'discriminator_features': 16,
            'discriminator_layers': 3,
            'discriminator_scales': 2,
        }
    )
    return model


def stage(objective: str) -> Config:
    """Fields of one stage: what it trains, for how long, with which optimiser."""
    cfg: Config = ConfigDict()
    # segmentation | maxquery | synthcp | universal | zept_stage1 | zept_stage2
    cfg.objective = objective
    cfg.init_from = ''  # '' previous stage (scratch for the first); or RUN or RUN:STAGE
    cfg.epochs = 1
    cfg.steps_per_epoch = 250
    cfg.accumulate = 1  # micro-batches per optimiser step
    cfg.optim = ConfigDict(
        {
            'name': 'sgd',
            'learning_rate': 1e-2,
            'momentum': 0.99,  # of sgd
            'betas': (0.9, 0.999),  # of radam, adam and adamw
            'weight_decay': 3e-5,
            'clip_norm': 12.0,
            'schedule': 'poly',  # poly | cosine
            'poly_power': 0.9,
            'warmup_epochs': 0,  # linear, of cosine
            'frozen_epochs': 0,  # epochs in which parameters below backbone/ stay fixed
            'backbone_multiplier': 1.0,  # learning-rate factor of backbone/ afterwards
        }
    )
    cfg.loss = ConfigDict(
        {
            'ce_weight': 1.0,
            'dice_weight': 1.0,
            'qd_weight': 0.0,
            'aux_weight': 1.0,
            'batch_dice': False,
            'feature_weight': 10.0,  # synthcp: feature matching
            'l1_weight': 10.0,  # synthcp: difference of the images
            'class_weight': 1.0,  # zept: class embeddings of the fundamental queries
            'alignment_weight': 1.0,  # zept: query-knowledge alignment, Eq. 11
            'align_unseen': False,  # zept: also queries of tumours that no label shows
            'organs_hold_tumours': True,  # zept: in the masks of the fundamental queries
        }
    )
    return cfg


def synthcp_stage() -> Config:
    """SynthCP: a network that draws the image from the labels, with SPADE's optimiser."""
    synth = stage('synthcp')
    synth.epochs = 200  # 100 + 100 of SPADE
    synth.optim.name = 'adam'
    synth.optim.learning_rate = 2e-4
    synth.optim.betas = (0.5, 0.999)
    synth.optim.weight_decay = 0.0
    synth.optim.clip_norm = 0.0
    return synth


def shorten_synthcp(synth: Config, like: Config) -> None:
    """For the phantom cohorts: as many steps as another stage, hundreds, at a larger rate."""
    synth.optim.learning_rate = 1e-3
    synth.epochs = like.epochs
    synth.steps_per_epoch = like.steps_per_epoch
