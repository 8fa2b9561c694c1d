"""Image files: decoding, the cache of decoded images, and checks of both. No annotations."""
