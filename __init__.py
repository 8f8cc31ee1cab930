"""Sightline trains, runs and scores networks that find things in pictures.

The folders, from pixels to scores: `datasets` (files to batches), `backbone` (pixels to feature maps), `detectors` (feature
maps to boxes), `evaluation` (boxes to scores), `training` (Lightning), `tools` (the commands).
"""

__version__ = "0.1.0"
