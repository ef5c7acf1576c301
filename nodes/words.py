"""Words that several modules share."""

CATEGORY = "VidRD"
FROM_PRIOR = "from prior"
AUTO = "auto"
