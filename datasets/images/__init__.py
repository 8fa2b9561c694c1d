"""Image files: decoding, orientation, the cache, and checks of files and names. No boxes and no transforms.

`decode` reads one file (with `pixel_format`, its bits and bands, and `orientation`, its EXIF rotation), `cache` keeps
decoded images, `checks` examines all files of a data set (with `folders`, their listings, `duplicates`,
and `hints`, similar names of missing files).
"""
