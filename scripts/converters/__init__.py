"""One module per public data set: its files to images, boxes and classes. No command line, no download, no writing."""
