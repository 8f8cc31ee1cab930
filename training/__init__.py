"""Lightning training of every head: modules, schedules, callbacks, recipes and run folders."""

from .callbacks import SaveOnInterrupt, StagedUnfreezing
from .detection import DetectionTraining, TrainingError
from .schedules import CosineDecay, ExponentialDecay, InverseTimeDecay, Schedule, StepDecay
from .scoring import Scored, detect_all, score
from .tasks import MONITORS
