"""A driver: connects to Ray and runs one task. Runs as a job, and by hand."""

import ray


def one() -> int:
    return 1


ray.init()
assert ray.get(ray.remote(one).remote()) == 1
