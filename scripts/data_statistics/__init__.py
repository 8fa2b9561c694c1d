"""Parts of scripts/dataset_stats.py."""
