"""Detectors: a file is a method. They are pure: readings in, scores out, higher is less safe."""
