"""Files that a run leaves to resume from: sealed checkpoints, the run folder, foreign checkpoints. Builds no model."""
