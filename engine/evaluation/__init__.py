"""From predictions to reports: loops, tables, galleries, calibration. No formulas: those are in `engine/metrics`."""
