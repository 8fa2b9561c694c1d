"""Tests, in folders that mirror the tree; helpers are in `support`, nothing here is imported by the product."""
