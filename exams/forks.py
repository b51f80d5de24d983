"""Forks of a process that has loaded torch already: a child of it starts in milliseconds."""

from __future__ import annotations

import os
import sys


def fork() -> int:
    """`os.fork`; several threads of the child may compute at once.

    A pool of threads that ``torch.set_num_threads`` has made is made anew when a fork first
    computes, without a lock: of threads that come together one finds none ("pool INTERNAL ASSERT
    FAILED ... Invalid thread pool!", caffe2/utils/threadpool/pthreadpool-cpp.cc), and weights are
    read by several. So the child does it before there are threads.
    """
    child = os.fork()
    if not child and "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(torch.get_num_threads())
    return child
