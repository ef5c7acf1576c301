"""Caption uncaptioned video with BLIP-2 and an instruction-following vision-language model, both in local folders.

    python training/caption_videos.py --config training/configs/caption.yaml --source.root my_videos
    python training/caption_videos.py --config training/configs/caption.yaml --engine.engine ray --engine.workers 4
    python training/caption_videos.py --config ... --engine.engine ray --engine.address ray://head:10001

``--engine ray`` and ``--engine process`` are short for ``--engine.engine``. To resume after an interruption,
run the same command again; no video is captioned twice. ``training/prepare_data.py`` takes the table as ``--captions``.
"""

from __future__ import annotations


def main() -> None:
    # Imported here, since every process of the pool imports this file again and needs none of these.
    import dataclasses
    import logging
    import sys
    from typing import Any

    from common import Options, parse

    from vidrd_core.data.captioning.run import CaptionSettings, caption_videos, videos_to_caption

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    @dataclasses.dataclass(frozen=True)
    class CaptionOptions(Options):
        engine: str | None = None  # short for --engine.engine

        def change(self, values: dict[str, Any]) -> None:
            if self.engine is not None:
                values["engine"] = {**(values.get("engine") or {}), "engine": self.engine}

    try:
        settings, options = parse(CaptionSettings, options=CaptionOptions)
        if options.dry_run:
            items = videos_to_caption(settings)
            prompts = settings.captioner.load_prompts()
            logging.info("%s", settings)
            logging.info("%s", prompts)
            logging.info("%d videos, the first: %s (label: %s)", len(items), items[0].name, items[0].label)
        else:
            caption_videos(settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
