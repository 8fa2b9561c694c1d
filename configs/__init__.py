"""Experiment configs: the schema, the strict loader, and one YAML file per experiment."""
