"""Reuse and Diffuse, the method (arXiv 2309.03549): settings, FNR and PNS noise, DSG, the trajectory, presets."""
