"""Where configs, data, models and the engine meet: the only part of the engine that knows the others."""
