"""`python -m scripts.gpu_steps`, which scripts/gpu_day.sh calls: its steps, their execution, figures and summary."""
