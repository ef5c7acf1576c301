"""Words that several modules share."""

CATEGORY = "VidRD"
FROM_PRIOR = "from prior"
AUTO = "auto"
CUSTOM = "custom"
ON, OFF = "on", "off"
INVERT, STRAIGHT = METHODS = "invert", "noise"  # how a trajectory is rebuilt
RELEASED_SAMPLER, RELEASED_SCHEDULER = "ddim", "ddim_uniform"  # of VidRD models, where nothing says more
REUSE_PRESETS = ("paper", "smooth")  # those of vidrd_core.reuse.presets that say how clips are chained
