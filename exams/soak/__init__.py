"""Nothing lost, nothing silent: faults in great numbers. ``python -m exams.soak --help``"""
