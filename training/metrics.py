"""Lightning's metrics.csv, kept when a run is resumed."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class ContinuedCSVLogger(CSVLogger):
    """A CSVLogger that goes on with the metrics.csv it finds, where Lightning's deletes it."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            before = path.read_text() if path.exists() else ""
            writer = super().experiment
            if before:
                path.write_text(before)
                writer.metrics_keys = next(csv.reader(before.splitlines()))
        return super().experiment
