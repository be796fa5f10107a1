"""Datamodules of the semantic novelty protocols, for any anomalib model."""

from anomalib_defend._autoload import register_data
from anomalib_defend.data.semantic import SemanticDataModule
from anomalib_defend.data.voc import SemanticVOC

__all__ = ["SemanticDataModule", "SemanticVOC"]

register_data()
