"""Packaging: `dashboard_module/` is installed as `ray_jobs.dashboard_module`.

Everything else about the package is declared in pyproject.toml.
"""

from setuptools import setup

setup(
    packages=[
        "ray_jobs",
        "ray_jobs._ray",
        "ray_jobs.cli",
        "ray_jobs.client",
        "ray_jobs.keeper",
        "ray_jobs.manager",
        "ray_jobs.supervisor",
        "ray_jobs.dashboard_module",
        "ray_jobs.dashboard_module.guard",
        "ray_jobs.dashboard_module.routes",
    ],
    package_dir={
        "ray_jobs": "ray_jobs",
        "ray_jobs.dashboard_module": "dashboard_module",
    },
    package_data={"ray_jobs": ["py.typed"], "ray_jobs.dashboard_module": ["openapi.json"]},
)
