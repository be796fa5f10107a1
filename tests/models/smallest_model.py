"""The smallest model on this package's contract: how far an image's mean feature is from that of the normal images."""

from anomalib.data import InferenceBatch
from anomalib.models.components import AnomalibModule
from torch import nn

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.fit_normality import FitNormality
from anomalib_defend.nn.encoder import create_encoder, data_config
from anomalib_defend.nn.normality import NearestNeighbors


class MeanFeatureModel(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.features = create_encoder(backbone, data_config(backbone).image_size).requires_grad_(False)
        self.normality = NearestNeighbors(self.features.num_features, num_neighbors=1)

    def encode(self, images):
        return self.features.forward_features(images).mean(dim=1)

    def forward(self, images):
        return InferenceBatch(pred_score=self.normality(self.encode(images)))


class MeanFeature(NoveltyDetectorMixin, AnomalibModule):
    distinctive_tensor = "model.features.pos_embed"
    architecture = ("backbone",)
    stage_names = (FitNormality.name,)
    pretrained_part = "features"
    has_map = False

    def __init__(self, backbone="deit_tiny_patch16_224", pre_trained=True, weights=None):
        super().__init__(data=data_config(backbone))
        self.model = self.build()

    def build(self, state=None):
        return MeanFeatureModel(self.hparams.backbone)

    def stages(self):
        return [FitNormality(self.model, self.hparams)]
