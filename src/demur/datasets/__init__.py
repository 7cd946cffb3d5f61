"""Data sets: a file is a set, or a way to read many; `rows` is the form that all of them share."""
