"""The parts of scripts/gpu_day.py: its steps, their execution, their figures and the summary. No commands of users."""
