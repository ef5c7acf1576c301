"""Metrics that need no ground truth: seams, flow and drift of any video, FVD, IS, CLIP similarity, UCF-101.

The evaluation on the moving-shapes data set, whose ground truth is known, is in :mod:`vidrd_core.shapes`. ComfyUI's
node Seam Report uses :mod:`.anyvideo` and :mod:`.charts` only.
"""
