"""The schema, the strict loader, and one YAML file per experiment. Nothing here imports torch or builds anything."""
