"""COCO annotation file -> flat arrays. No image files (datasets.images), no samples and transforms (datasets).

One pass over the file, to read in this order: `json_stream` (blocks of JSON, and what a value means), `columns` (sound
objects as flat columns), `validation` (images and categories), `objects` (doubtful annotations, field by field),
`plausibility` (what all boxes together show), `table` (`read_annotations`, which joins them). Six files of one noun
each: in four, two would be above 300 lines.
"""
