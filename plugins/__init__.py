"""One file per model family, and our observers: they enter by the door that strangers use."""
