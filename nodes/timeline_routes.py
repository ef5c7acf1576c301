"""What the display of a timeline asks the server: which takes there are, what is stale, how much seams show."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..vidrd_core.jobs.takes import TakeFolder
from ..vidrd_core.jobs.timeline import FINISHED, Settings, Surroundings, Timeline, plan, takes_of
from .files import STATES, output_path
from .server import running_server

logger = logging.getLogger(__name__)

EVENT = "vidrd.timeline"
ROUTE = "/vidrd/timeline"
MAX_SEAM_FRAMES = 20_000  # that are measured in one request


def status(asked: dict[str, Any]) -> dict[str, Any]:
    """What the cards of a timeline show.

    Args:
        asked: "run", "timeline" (its text), "settings" (those of :class:`Settings` that the node holds itself), "fps".

    Returns:
        "clips": of the branch that is shown, see :class:`vidrd_core.jobs.timeline.Planned`; "takes" by id; "video": the
        joined video of what is planned, where it is there; "folder": where /view finds the files.

    Raises:
        ValueError: the timeline or the run's name is none.
    """
    from .timeline_files import video_name

    timeline = Timeline.parse(str(asked.get("timeline", "")))
    folder = TakeFolder(output_path(str(asked.get("run", ""))))
    records = folder.records()
    ids = [clip.id for clip in timeline.clips]
    known = folder.remembered(ids)
    try:
        around = Surroundings.of(known["around"])
    except (KeyError, TypeError):  # it never ran
        around = None
    given = asked.get("settings")
    settings = Settings.of(given if isinstance(given, dict) else {}, Settings.of(known.get("settings", {})))
    planned = plan(timeline, settings, around, records, folder.is_finished)
    named = [one.take for one in planned if one.take in records]
    takes = {take: records[take] for take in takes_of(ids, records, named)}
    video: dict[str, Any] = {}
    if all(one.state == FINISHED for one in planned):
        fps = asked.get("fps")
        fps = fps if isinstance(fps, int | float) else known.get("fps", 8.0)
        name = video_name([one.take for one in planned], fps, bool(planned[-1].closes))
        video = folder.video(name)
        video = {"name": name, **{key: video[key] for key in ("seams", "frames", "fps")}} if video else {}
    return {
        "clips": [
            {"id": one.clip.id, "take": one.take, "state": one.state, "joins": one.joins, "seen": one.seen}
            for one in planned
        ],
        "takes": {take: _for_card(record) for take, record in takes.items()},
        "video": video or None,
        "folder": f"{STATES}/{folder.path.relative_to(output_path('x').parent).as_posix()}",
        "settings": asdict(settings),
    }


def _for_card(record: dict[str, Any]) -> dict[str, Any]:
    names = ("clip", "prompt", "seed", "frames", "new_frames", "follows", "made", "seconds")
    return {name: record.get(name) for name in names}


def delete(asked: dict[str, Any]) -> dict[str, Any]:
    """Delete the take "take" of the run "run".

    Raises:
        ValueError: those are no names.
    """
    return {"deleted": TakeFolder(output_path(str(asked.get("run", "")))).delete(str(asked.get("take", "")))}


def seams(asked: dict[str, Any]) -> dict[str, Any]:
    """The figures of each seam of the video "video" of the run "run".

    Raises:
        ValueError: the video is not there, or too long.
    """
    from .timeline_files import seam_figures

    folder, name = TakeFolder(output_path(str(asked.get("run", "")))), str(asked.get("video", ""))
    frames = folder.video(name).get("frames", 0)
    if frames > MAX_SEAM_FRAMES:
        raise ValueError(f"the video has {frames} frames; at most {MAX_SEAM_FRAMES} are measured here: use Seam Report")
    return seam_figures(folder, name)


def deletions(run: Path) -> str:
    """Changes when a take of a run is deleted."""
    return TakeFolder(run).deletions()


def teller(node: str) -> Callable[[str, str, str], None]:
    """A function that tells the browser what becomes of a clip of a node."""
    server = running_server()

    def tell(clip: str, state: str, take: str) -> None:
        if server is not None:
            server.send_sync(EVENT, {"node": node, "clip": clip, "state": state, "take": take})

    return tell


def register_routes() -> None:
    """Let ComfyUI's server answer what the display asks; without a server nothing happens."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web

    def answering(work: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
        async def answer(request: web.Request) -> web.Response:
            try:
                asked = await request.json()
                if not isinstance(asked, dict):
                    raise ValueError("expected a JSON object")
                return web.json_response(await asyncio.to_thread(work, asked))
            except ValueError as error:
                return web.json_response({"error": str(error)}, status=400)
            except OSError as error:
                logger.warning("The timeline's files cannot be read or written: %s", error)
                return web.json_response({"error": str(error)}, status=500)

        return answer

    for path, work in ((ROUTE, status), (f"{ROUTE}/delete", delete), (f"{ROUTE}/seams", seams)):
        server.routes.post(path)(answering(work))
