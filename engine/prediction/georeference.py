"""Boxes in px of a raster -> polygons in longitude and latitude (extra `geo`)."""

import numpy as np

from datasets.structures import Georeference

WGS84 = "OGC:CRS84"
"""Longitude, latitude: the order of RFC 7946, whatever a library makes of EPSG:4326"""


def box_polygons(boxes: np.ndarray, georeference: Georeference) -> np.ndarray:
    """(N, 4) xyxy px -> (N, 5, 2) longitude, latitude, degrees: closed, counter-clockwise rings (RFC 7946)."""
    from rasterio.warp import transform

    corners = boxes[:, [[0, 1], [0, 3], [2, 3], [2, 1]]].reshape(-1, 2)  # counter-clockwise where y points down
    a, b, c, d, e, f = georeference.transform
    x, y = a * corners[:, 0] + b * corners[:, 1] + c, d * corners[:, 0] + e * corners[:, 1] + f
    if len(boxes):
        x, y = transform(georeference.crs, WGS84, x.tolist(), y.tolist())[:2]
    rings = np.stack([np.asarray(x), np.asarray(y)], axis=1).reshape(-1, 4, 2)
    clockwise = _signed_area(rings) < 0  # of a mirrored or turned raster
    rings[clockwise] = rings[clockwise, ::-1]
    return np.concatenate([rings, rings[:, :1]], axis=1)


def _signed_area(rings: np.ndarray) -> np.ndarray:
    """(N, 4, 2) -> (N,), positive counter-clockwise."""
    after = np.roll(rings, -1, axis=1)
    return (rings[..., 0] * after[..., 1] - after[..., 0] * rings[..., 1]).sum(axis=1) / 2
