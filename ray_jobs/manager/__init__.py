"""The JobManager: the detached actor that is the only writer of job state."""
