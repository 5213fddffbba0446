"""The command line `ray-jobs`.

Nothing is imported here: a shell waits for `ray-jobs --help`, so each module of this package
imports what it needs where it needs it.
"""


def main() -> None:
    """Run the command line and exit."""
    from ray_jobs.cli.app import cli

    cli.main(prog_name="ray-jobs")
