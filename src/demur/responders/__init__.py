"""Responders: a file is a method. They are pure: verdicts in, an intervention (data) out."""
