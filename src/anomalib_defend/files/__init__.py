"""Files: their names on disk and in words, the images of a folder, which are one, equal or unusable."""
