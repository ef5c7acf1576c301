"""The moving-shapes data set, which the bundled model is trained and evaluated on: rendered scenes with ground truth.

:mod:`.scenes` renders captioned clips, :mod:`.latents` stores them for training, :mod:`.tracker` finds the shape in any
frame, :mod:`.prompted` compares videos with their prompts, and :mod:`.comparison` measures long videos of many methods
(:mod:`.methods`, :mod:`.measures`), which :mod:`.document` turns into tables and charts. Measures that need no ground
truth are in :mod:`vidrd_core.metrics`.
"""
