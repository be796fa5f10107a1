"""Names of files, as they are on the disk, in tables and in words, and which files are one or have equal bytes."""
