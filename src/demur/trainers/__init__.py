"""Trainers: a file is a method. It makes the artifact that a responder reads."""
