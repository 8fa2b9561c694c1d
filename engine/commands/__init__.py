"""Build and run the commands of main.py: the only part of the engine that imports datasets, models and ops."""
