"""Plugins: what they may do, how they are found, and how a config finds its family."""
