"""From predictions to reports: loops, tables, galleries, calibration. The formulas are in `engine/metrics`."""
