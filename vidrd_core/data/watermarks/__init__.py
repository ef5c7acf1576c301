"""Watermarks that recur over many videos: estimate them, show them, remove them.

The paper says that watermarks are removed from the training data, not how. The estimation follows Dekel et al., "On the
Effectiveness of Visible Watermarks" (CVPR 2017): over many pictures the median gradient is that of the watermark.
"""
