"""Captions for uncaptioned video by multimodal models: key frames, questions about them, answers made one caption.

As the paper does it: BLIP-2 answers questions about key frames, and an instruction-following vision-language model
answers prompts that carry the class label. The paper's questions are not published; those of
``training/configs/caption_prompts.yaml`` are our own.
"""
