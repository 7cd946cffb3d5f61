"""The vocabulary that every other package speaks; needs NumPy and safetensors only."""
