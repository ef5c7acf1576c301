"""Words that several modules share."""

CATEGORY = "VidRD"
FROM_PRIOR = "from prior"
AUTO = "auto"
CUSTOM = "custom"
REUSE_PRESETS = ("paper", "smooth")  # those of vidrd_core.reuse.presets that say how clips are chained
