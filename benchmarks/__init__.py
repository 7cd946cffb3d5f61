"""Measures speed and quality; results lie beside the scripts."""
