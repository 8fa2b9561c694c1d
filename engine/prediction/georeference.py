"""Boxes in px of a raster -> polygons in longitude and latitude (extra `geo`)."""

import numpy as np

from datasets.structures import Georeference

WGS84 = "OGC:CRS84"
"""Longitude, latitude: the order of RFC 7946, whatever a library makes of EPSG:4326"""


def box_polygons(boxes: np.ndarray, georeference: Georeference) -> np.ndarray:
    """(N, 4) xyxy px -> (N, 5, 2) longitude, latitude, degrees: closed, counter-clockwise rings (RFC 7946).

    A corner outside of the raster's projection is not finite.
    """
    corners = boxes[:, [[0, 1], [0, 3], [2, 3], [2, 1]]].reshape(-1, 2)  # counter-clockwise where y points down
    a, b, c, d, e, f = georeference.transform
    x, y = a * corners[:, 0] + b * corners[:, 1] + c, d * corners[:, 0] + e * corners[:, 1] + f
    rings = _to_degrees(georeference.crs, np.stack([x, y], axis=1)).reshape(-1, 4, 2)
    clockwise = _signed_area(rings) < 0  # of a mirrored or turned raster
    rings[clockwise] = rings[clockwise, ::-1]
    return np.concatenate([rings, rings[:, :1]], axis=1)


def _to_degrees(crs: str, points: np.ndarray) -> np.ndarray:
    """(N, 2) x, y -> (N, 2) longitude, latitude; infinite where there is none."""
    from rasterio.warp import transform

    if not len(points):
        return points
    try:
        return np.stack(transform(crs, WGS84, *points.T.tolist())[:2], axis=1)
    except Exception:  # of GDAL, none of rasterio's public errors: a point outside of the projection fails all
        if len(points) == 1:
            return np.full((1, 2), np.inf)
        half = len(points) // 2
        return np.concatenate([_to_degrees(crs, points[:half]), _to_degrees(crs, points[half:])])


def _signed_area(rings: np.ndarray) -> np.ndarray:
    """(N, 4, 2) -> (N,), positive counter-clockwise."""
    after = np.roll(rings, -1, axis=1)
    with np.errstate(invalid="ignore"):  # a ring that is not finite has no orientation
        return (rings[..., 0] * after[..., 1] - after[..., 0] * rings[..., 1]).sum(axis=1) / 2
