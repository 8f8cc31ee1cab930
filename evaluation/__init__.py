"""Predictions and truth to scores: COCO and VOC AP, captions, label maps, confusion, threshold curves, charts and a report."""

from .caption_collector import CaptionCollector
from .caption_report import write_caption_report
from .caption_results import read_caption_results, read_caption_truth, write_caption_results
from .caption_tokens import caption_tokens
from .captions import CaptionResult, evaluate_captions
from .coco import CocoResult, evaluate_coco
from .collector import DetectionCollector
from .confidence import ConfidenceCurves, ImageErrors, confidence_curves, image_errors
from .confusion import confusion_matrix
from .drawing import draw_comparison
from .instances import InstanceResult, evaluate_instances, evaluate_masks
from .label_drawing import (
    draw_errors,
    draw_label_comparison,
    draw_labels,
    label_colours,
    label_legend,
    with_legend,
)
from .localization import LocalizationResult, evaluate_localization
from .page import ReportInputs
from .plots import plot_confidence, plot_confusion, plot_precision_recall
from .recall import Coverage, cover, proposal_recall
from .recall_plot import plot_recall
from .records import Detections, Truth
from .region_ap import RegionResult, evaluate_regions
from .report import write_report
from .results import read_coco_truth, read_results, write_results
from .segmentation import SegmentationResult
from .segmentation_collector import SegmentationCollector
from .segmentation_report import write_segmentation_report
from .training_curves import plot_training
from .voc import VocResult, evaluate_voc
