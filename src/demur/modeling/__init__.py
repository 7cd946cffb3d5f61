"""Helpers around torch and transformers: load a model, find its blocks, capture, render chats."""
