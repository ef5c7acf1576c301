"""Prepare a data set: from videos and images to WebDataset shards with an index, statistics and a sample sheet.

    python training/prepare_data.py --config training/configs/data_folder.yaml --source.root my_videos
    python training/prepare_data.py --config training/configs/data_ucf101.yaml --engine.engine ray
    python training/prepare_data.py --config ... --engine.engine ray --engine.address ray://head:10001

To resume after an interruption, run the same command again. On a Ray cluster every machine needs this package and sees
the source under the same path; the machine that runs the command writes the shards.
"""

from __future__ import annotations


def main() -> None:
    # Imported here, since every process of the pool imports this file again and needs none of these.
    import logging
    import sys

    from common import parse

    from vidrd_core.data.preparation import PreparationSettings, prepare

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        settings, options = parse(PreparationSettings)
        if options.dry_run:
            logging.info("%s", settings)
        else:
            prepare(settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
