"""Detection and counting metrics in pure numpy. No torch, no files, no pictures."""
