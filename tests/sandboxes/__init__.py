"""Sandboxes, as far as no guest is needed."""
