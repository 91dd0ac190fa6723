"""What a long run needs: a directory, files, devices, progress."""
