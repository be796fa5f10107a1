"""The plugin's models; importing this package also makes them known to anomalib by their bare names."""

import anomalib_defend.example.encoder  # noqa: F401 - makes the example's encoder known to timm
from anomalib_defend._autoload import register_models

from .arnet import ARNet
from .deep_svdd import DeepSVDD
from .defend import Defend
from .dn2 import DN2
from .fcdd import FCDD
from .fitymi import Fitymi
from .kdad import KDAD
from .msad import MSAD
from .object_prototypes import ObjectPrototypes
from .panda import PANDA
from .transformaly import Transformaly
from .uniad import UniAD

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
    "Transformaly",
    "UniAD",
]

register_models()
