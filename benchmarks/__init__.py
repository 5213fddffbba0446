"""The same work against Ray's own job server and against ours, on one machine, in one run."""
