"""Lightning training of every head: modules, schedules, callbacks, recipes and run folders."""

from .callbacks import SaveOnInterrupt
from .clock import TrainingClock
from .crop_voting import Crops, crop_probabilities, score_crops
from .detection import DetectionTraining
from .linear import LinearModel, fit_softmax, fit_svm, fit_svms
from .module import Training, TrainingError
from .moving_average import MovingAverage
from .ratios import UpdateRatios
from .schedules import CosineDecay, ExponentialDecay, InverseTimeDecay, PolynomialDecay, Schedule, StepDecay
from .scoring import Scored, detect_all, detect_tiled, score, score_tiled
from .tasks import MONITORS
from .unfreezing import PlateauUnfreezing, StagedUnfreezing
