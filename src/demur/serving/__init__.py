"""The HTTP server: what clients of OpenAI speak, with a guard behind it."""
