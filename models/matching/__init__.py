"""Assignment of predictions to objects: cost, exact bipartite matching. Losses are in `models/criterion.py`."""
