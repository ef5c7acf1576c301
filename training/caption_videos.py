"""Caption uncaptioned video with BLIP-2 and an instruction-following vision-language model, both in local folders.

    python training/caption_videos.py --config training/configs/caption.yaml --source.root my_videos
    python training/caption_videos.py --config training/configs/caption.yaml --engine.engine ray --engine.workers 4
    python training/caption_videos.py --config ... --engine.engine ray --engine.address ray://head:10001

``--engine ray`` and ``--engine process`` are short for ``--engine.engine``. Run the same command again to continue
after an interruption; no video is done twice. The table is what ``training/prepare_data.py`` takes as ``--captions``.
"""

from __future__ import annotations


def main() -> None:
    # Imported here, since every process of the pool imports this file again and needs nothing of it.
    import logging
    import sys

    from common import parse

    from vidrd_core.data.captioning.run import CaptionSettings, caption_videos, videos_to_caption

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments = ["--engine.engine" if argument == "--engine" else argument for argument in sys.argv[1:]]
    try:
        settings, common = parse(CaptionSettings, arguments)
        if common.dry_run:
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
