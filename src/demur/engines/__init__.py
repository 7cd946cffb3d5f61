"""Engines run chat models: they read the prefill, ask for a decision, and carry it out."""
