"""A trained region proposal network as a source of proposals for other detectors, such as Fast R-CNN."""

from __future__ import annotations

from dataclasses import replace

from tqdm import tqdm

from ..backbone.model import answering
from ..datasets.detection import DetectionDataset, Loader, loader_for
from ..datasets.proposals import Boxes, Regions
from ..datasets.structures import Instances
from ..datasets.table import DataError, Table
from ..detectors.faster_rcnn import FasterRCNN
from ..detectors.model import Detector


def network_proposals(
    model: Detector, table: Table, *, batch_size: int = 8, num_workers: int = 0, progress: bool = True
) -> Table:
    """The table with the regions that a Faster R-CNN proposes in its pictures, on the model's device.

    Args:
        model: a `FasterRCNN`; what its head makes of the regions is not asked.
        table: the pictures; proposals that it has already are replaced.
        batch_size: pictures at a time.
        num_workers: processes that load pictures.
        progress: show a bar.

    Returns:
        The same columns with `regions`: in the original pictures' pixels, best first, scored by objectness in [0, 1].

    Raises:
        DataError: a model of another kind, or a picture that cannot be read.
    """
    if not isinstance(model, FasterRCNN):
        raise DataError(
            f"only a Faster R-CNN has a network that proposes regions, this is a {type(model).__name__}; name a checkpoint "
            "of a faster_rcnn recipe"
        )
    table = replace(table, regions=None)
    loader = loader_for(DetectionDataset(table, resize=model.resize), batch_size, num_workers=num_workers)
    found = _propose_all(model, loader, progress)
    return replace(table, regions=Regions.of([found[int(image_id)] for image_id in table.image_ids]))


def _propose_all(model: FasterRCNN, loader: Loader, progress: bool) -> dict[int, Boxes]:
    """Each picture's proposals by its id."""
    device, found = next(model.parameters()).device, {}
    for batch in tqdm(loader, desc="propose", unit="batch", disable=None if progress else True, leave=False):
        batch = batch.to(device)
        with answering(model):
            proposals = model.propose(batch.images, batch.sizes)
        proposals = proposals.to_original(batch.infos).to("cpu")
        found |= {info.id: _of_picture(proposals[place]) for place, info in enumerate(batch.infos)}
    return found


def _of_picture(proposals: Instances) -> Boxes:
    """What lies beyond a picture's border is clipped there; of a sliver at the border nothing may be left."""
    proposals = proposals[(proposals.boxes[:, 2:] > proposals.boxes[:, :2]).all(dim=1)]
    return Boxes(proposals.boxes.numpy(), proposals.scores.numpy())
