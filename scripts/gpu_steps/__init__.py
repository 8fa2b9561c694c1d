"""The steps of scripts/gpu_day.py: which there are, how one is run, what is read from it, and the summary of all."""
