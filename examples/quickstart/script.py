"""The quickstart: a counter actor, and a `requests` version pinned by the runtime environment."""

import ray
import requests

ray.init()


@ray.remote
class Counter:
    def __init__(self):
        self.value = 0

    def increment(self):
        self.value += 1
        return self.value


counter = Counter.remote()
for _ in range(5):
    print(ray.get(counter.increment.remote()))

print("requests", requests.__version__)
