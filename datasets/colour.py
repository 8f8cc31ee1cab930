"""Changes of hue, saturation and value (Smith 1978), the way detectors vary colours (YOLOv1, section 2.2; YOLOX)."""

from __future__ import annotations

import cv2
import numpy as np


def change_hsv(image: np.ndarray, *, hue: float = 0.0, saturation: float = 1.0, value: float = 1.0) -> np.ndarray:
    """A picture in other colours.

    Hues are held to 360/256 degrees, the others to 1/255: colours come out within a few levels of exact arithmetic.

    Args:
        image: (H, W, 3) uint8 RGB.
        hue: degrees to turn the hue by, from red towards green.
        saturation: factor; what comes out above 1 becomes 1.
        value: factor of the value, the largest of R, G and B; what comes out above 1 becomes 1.

    Returns:
        (H, W, 3) uint8 RGB; the picture itself where nothing changes.
    """
    if (hue, saturation, value) == (0, 1, 1):
        return image
    levels = np.arange(256)
    tables = ((levels + round(hue / 360 * 256)) % 256, *(np.rint(levels * f).clip(0, 255) for f in (saturation, value)))
    channels = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL))  # one by one, in half the time
    channels = [cv2.LUT(channel, table.astype(np.uint8)) for channel, table in zip(channels, tables, strict=True)]
    return cv2.cvtColor(cv2.merge(channels), cv2.COLOR_HSV2RGB_FULL)
