"""Programs that work on results: evaluation of files, analysis, comparison."""
