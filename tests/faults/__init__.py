"""Faults of the host: what is below a monitor fails, once, at any call. A clear error comes of it, or none; nothing is left."""
