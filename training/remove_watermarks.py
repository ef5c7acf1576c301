"""Remove a watermark that recurs over many videos of one size: estimate it, look at the mask, then inpaint or crop.

    python training/remove_watermarks.py --config training/configs/watermark.yaml --source.root raw --estimate-only
    python training/remove_watermarks.py --config training/configs/watermark.yaml --source.root raw

Between the two, ``watermarks/<size>/picture.png`` in the output shows the watermark that was found and its removal, and
``mask.png`` may be edited. To resume after an interruption, run the same command again. The folder ``clean`` has the
layout of the source, captions beside the videos included.
"""

from __future__ import annotations


def main() -> None:
    # Imported here, since every process of the pool imports this file again and needs none of these.
    import logging
    import sys

    from common import parse

    from vidrd_core.data.watermarks.run import WatermarkSettings, list_videos, remove_watermarks

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        settings, options = parse(WatermarkSettings)
        if options.dry_run:
            videos = list_videos(settings.source)
            logging.info("%s", settings)
            logging.info("%d videos, the first: %s", len(videos), videos[0].name)
        else:
            remove_watermarks(settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
