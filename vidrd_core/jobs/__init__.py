"""Long jobs: clips in a state folder, resume, many videos."""
