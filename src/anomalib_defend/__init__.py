"""Multi-object semantic novelty detection for anomalib.

The training images define "normal" as their dominant object category; an image is novel when that object is missing,
whatever else it shows.

Reading order, along the path that an image takes:

1. ``data.protocol`` (categories + setting -> normal / novel), ``data.semantic`` (the datamodule), one file per format
2. ``pre_processing`` (resize and normalise, the same numbers in training, on the command line and after export)
3. ``nn.encoder``, ``nn.vit`` (patch tokens, attention), ``nn.crops``, ``nn.sinkhorn``, ``nn.dense_prototypes``,
   ``nn.masking``, ``nn.distance`` (student and teacher), ``nn.normality`` (what is normal), ``nn.score`` (the map),
   ``nn.views`` (the whole image and parts of it)
4. ``models.components``: ``stage`` (a part of a training), ``run`` (what it may ask), ``normal_images`` (the one pass
   over them), ``stage_runner`` (the only file that tells the trainer what to do), ``contract`` to ``lightning_model``
5. ``models.dn2`` (nearest neighbours, the baseline), ``models.object_prototypes`` (the normal object anywhere in the
   image), ``models.defend`` (the paper's method), ``models.fitymi`` (fakes), ``models.arnet`` (restoration),
   ``models.kdad`` (a small student), ``models.msad`` and ``models.panda`` (a tuned encoder, ``nn.tuned_encoder``),
   ``models.transformaly`` (students of a ViT's blocks), ``models.deep_svdd``, ``models.fcdd`` (small networks from
   scratch), ``models.uniad`` (restored features): each with ``torch_model``, ``stages`` and ``lightning_model``
6. ``post_processing`` (threshold from normal images, strictly monotone scaling), ``decision`` (p-values, thresholds,
   tables), ``visualization`` (a picture of each image)
7. ``scoring`` (any number of images), ``reporting`` (a page of a finished run), ``app`` (a model in the browser)
8. ``benchmark`` (the comparison of models), ``commands`` (``anomalib-defend``), ``console`` (the screen of both)

Importing this package imports nothing else: the public names below are resolved on first use.
"""

TYPE_CHECKING = False  # typing's own constant costs an import of typing, at every start of the interpreter
if TYPE_CHECKING:
    from anomalib_defend._version import __version__
    from anomalib_defend.data import (
        PredictFolder,
        SemanticCIFAR10,
        SemanticCIFAR100,
        SemanticCOCO,
        SemanticFashionMNIST,
        SemanticFolder,
        SemanticMNIST,
        SemanticVOC,
    )
    from anomalib_defend.models import (
        DN2,
        FCDD,
        KDAD,
        MSAD,
        PANDA,
        ARNet,
        DeepSVDD,
        Defend,
        Fitymi,
        ObjectPrototypes,
        Transformaly,
        UniAD,
    )

_EXPORTS = {
    "ARNet": "anomalib_defend.models",
    "DN2": "anomalib_defend.models",
    "DeepSVDD": "anomalib_defend.models",
    "Defend": "anomalib_defend.models",
    "FCDD": "anomalib_defend.models",
    "Fitymi": "anomalib_defend.models",
    "ObjectPrototypes": "anomalib_defend.models",
    "KDAD": "anomalib_defend.models",
    "MSAD": "anomalib_defend.models",
    "PANDA": "anomalib_defend.models",
    "PredictFolder": "anomalib_defend.data",
    "SemanticCIFAR10": "anomalib_defend.data",
    "SemanticCIFAR100": "anomalib_defend.data",
    "SemanticCOCO": "anomalib_defend.data",
    "SemanticFashionMNIST": "anomalib_defend.data",
    "SemanticFolder": "anomalib_defend.data",
    "SemanticMNIST": "anomalib_defend.data",
    "SemanticVOC": "anomalib_defend.data",
    "Transformaly": "anomalib_defend.models",
    "UniAD": "anomalib_defend.models",
    "__version__": "anomalib_defend._version",
}

__all__ = [
    "DN2",
    "FCDD",
    "KDAD",
    "MSAD",
    "PANDA",
    "ARNet",
    "DeepSVDD",
    "Defend",
    "Fitymi",
    "ObjectPrototypes",
    "PredictFolder",
    "SemanticCIFAR10",
    "SemanticCIFAR100",
    "SemanticCOCO",
    "SemanticFashionMNIST",
    "SemanticFolder",
    "SemanticMNIST",
    "SemanticVOC",
    "Transformaly",
    "UniAD",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        from importlib import import_module  # noqa: PLC0415 - as above

        return getattr(import_module(_EXPORTS[name]), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
