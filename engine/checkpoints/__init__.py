"""Files from which a run resumes: sealed checkpoints, the run folder, foreign checkpoints. Builds no model."""
