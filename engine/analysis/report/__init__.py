"""The page that shows an analysis: one HTML file that needs nothing else."""
