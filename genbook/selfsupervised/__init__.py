"""Learning without labels: views, how representations are judged, SimSiam and its relatives."""

from .collapse import fixed_points, integrate, plain_flow, stop_gradient_flow, survives
from .encoder import predictor, projector, resnet18
from .pretraining import PretrainRecipe, features_of, monitor, outputs, sgd, two_views, views_of
from .relatives import (
    BYOL,
    RelativeRecipe,
    Twins,
    barlow_twins_loss,
    directional,
    heavily,
    jigsaw,
    nt_xent_loss,
    vicreg_loss,
)
from .representations import alignment, effective_rank, knn_votes, spectrum, spread, uniformity
from .simsiam import CosineSimilarity, SimSiam, SimSiamRecipe, adjust_learning_rate
from .views import Augmentation, normalise, plain_view

__all__ = [
    "BYOL",
    "Augmentation",
    "CosineSimilarity",
    "PretrainRecipe",
    "RelativeRecipe",
    "SimSiam",
    "SimSiamRecipe",
    "Twins",
    "adjust_learning_rate",
    "alignment",
    "barlow_twins_loss",
    "directional",
    "effective_rank",
    "features_of",
    "fixed_points",
    "heavily",
    "integrate",
    "jigsaw",
    "knn_votes",
    "monitor",
    "normalise",
    "nt_xent_loss",
    "outputs",
    "plain_flow",
    "plain_view",
    "predictor",
    "projector",
    "resnet18",
    "sgd",
    "spectrum",
    "spread",
    "stop_gradient_flow",
    "survives",
    "two_views",
    "uniformity",
    "vicreg_loss",
    "views_of",
]
