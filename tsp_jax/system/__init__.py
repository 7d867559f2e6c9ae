"""What any program of this kind needs: files, tables, locks, devices, time. Imports nothing else of this project."""
