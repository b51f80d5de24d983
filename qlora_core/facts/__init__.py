"""What can be said about a model family. Standard library only."""
