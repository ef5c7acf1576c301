"""Prepare a data set: videos and images in, WebDataset shards with an index, statistics and a sample sheet out.

    python training/prepare_data.py --config training/configs/data_folder.yaml --source.root my_videos
    python training/prepare_data.py --config training/configs/data_ucf101.yaml --engine.engine ray
    python training/prepare_data.py --config ... --engine.engine ray --engine.address ray://head:10001

Run the same command again to continue after an interruption. On a Ray cluster every machine needs this package and sees
the source under the same path; the machine that runs the command writes the shards.
"""

from __future__ import annotations


def main() -> None:
    # Imported here, since every process of the pool imports this file again and needs nothing of it.
    import logging
    import sys

    from common import parse

    from vidrd_core.data.preparation import PreparationSettings, prepare

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        settings, common = parse(PreparationSettings, sys.argv[1:])
        if common.dry_run:
            logging.info("%s", settings)
        else:
            prepare(settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
