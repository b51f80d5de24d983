"""Every architecture, one by one. ``python -m exams.sweep --help``"""
