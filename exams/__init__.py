"""The long exams: what `make soak` and `make sweep` run, and what their figures mean."""
