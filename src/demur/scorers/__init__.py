"""Scorers of one reply: what became of a request, or a number that tells something of the reply."""
