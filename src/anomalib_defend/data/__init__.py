"""Datamodules of the semantic novelty protocols, for any anomalib model."""

from anomalib_defend._autoload import register_data
from anomalib_defend.data.cifar import SemanticCIFAR10, SemanticCIFAR100
from anomalib_defend.data.coco import SemanticCOCO
from anomalib_defend.data.folder import SemanticFolder
from anomalib_defend.data.mnist import SemanticFashionMNIST, SemanticMNIST
from anomalib_defend.data.predict import PredictFolder
from anomalib_defend.data.semantic import SemanticDataModule
from anomalib_defend.data.voc import SemanticVOC

__all__ = [
    "PredictFolder",
    "SemanticCIFAR10",
    "SemanticCIFAR100",
    "SemanticCOCO",
    "SemanticDataModule",
    "SemanticFashionMNIST",
    "SemanticFolder",
    "SemanticMNIST",
    "SemanticVOC",
]

register_data()
