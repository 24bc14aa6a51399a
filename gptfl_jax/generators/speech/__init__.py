"""Texts to speech."""
