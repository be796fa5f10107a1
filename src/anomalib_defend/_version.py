"""The version: read by the build, by the package and by what keeps results of one version apart. Imports nothing."""

__version__ = "0.1.0"
