"""The HTTP face of ray-jobs: aiohttp handlers that parse, call and encode, and decide nothing."""
