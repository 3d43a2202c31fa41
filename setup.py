"""Build metadata, read from settings.ini, which nbdev shares."""

from configparser import ConfigParser

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf8")
settings = config["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    keywords=settings["keywords"],
    license="Apache-2.0",
    author=settings["author"],
    packages=find_packages(include=[settings["lib_path"], settings["lib_path"] + ".*"]),
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require={
        "export": settings["export_requirements"].split(),
        "dev": [*settings["export_requirements"].split(), *settings["dev_requirements"].split()],
    },
    entry_points={"console_scripts": settings["console_scripts"].split()},
)
