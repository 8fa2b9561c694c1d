"""Build and run what a user asks for: the only part of the engine that imports datasets, models and ops."""
