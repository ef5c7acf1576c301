"""Kill the real commands at random moments, start them again, and compare with a run that nobody interrupted.

    python benchmarks/reliability.py generate videos train train-two two-to-one prepare --kills 50
    python benchmarks/reliability.py generate train-two --kills 3 --cold          # every start a new interpreter
    python benchmarks/reliability.py soak --clips 1000                            # memory and file handles

A kind's command first runs to its end: that is the result to reach, and the processor time that kills spread over. Then
it is started again and again on a new folder, and each time the processes and all they have started get SIGKILL at a
random moment (uniform over that time, seeded), until one start comes to its end before its kill; then the next folder
begins. After every kill what was finished before it must be there unchanged (the same file, by inode, time and hash, so
that nothing is made twice), and at the end every file must equal the uninterrupted run's, byte by byte, with no other
file beside them (the metadata of safetensors in any order). Moments are processor seconds of the processes, since a
shared machine's clock says little.

Most of a small command's time is importing torch. So by default each start is a fork of this process, which has
imported the libraries and done nothing else; the command itself runs from its first line, by the same entry as
``python -m``. ``--cold`` starts real interpreters instead, and torchrun where there are two processes. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads do not survive a fork

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "vidrd_core" / "demo_model"
PROMPT = "a red circle moves left"
LIMIT = 1800  # seconds of the clock after which a start counts as hanging

Files = dict[str, Any]  # name -> what identifies a file


@dataclass(frozen=True)
class Command:
    """A module or script with its arguments, run by so many processes at once."""

    target: str
    arguments: tuple[str, ...]
    processes: int = 1

    @property
    def is_script(self) -> bool:
        return self.target.endswith(".py")

    def run(self) -> None:
        """Run it here, as ``python`` would."""
        sys.argv = [self.target, *self.arguments]
        if self.is_script:
            runpy.run_path(str(ROOT / self.target), run_name="__main__")
        else:
            runpy.run_module(self.target, run_name="__main__", alter_sys=True)

    def line(self) -> list[str]:
        """The command line of a new interpreter."""
        target = [str(ROOT / self.target)] if self.is_script else ["-m", self.target]
        if self.processes == 1:
            return [sys.executable, *target, *self.arguments]
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={self.processes}", f"--master_port={free_port()}"]
        return [sys.executable, *launcher, *target, *self.arguments]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Start:
    """A command that runs, as one or more processes; what they print goes to ``log``."""

    def __init__(self, command: Command, log: Path, cold: bool):
        self.command, self.log = command, log
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {"PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false"}
        with log.open("ab") as file:
            if cold:
                line, changed = command.line(), {**os.environ, **environment}
                made = subprocess.Popen(line, stdout=file, stderr=file, env=changed, start_new_session=True)
                self.pids = [made.pid]
            else:
                ranks = self._ranks()
                self.pids = [_fork(command, {**environment, **rank}, file.fileno()) for rank in ranks]
        self.codes: dict[int, int] = {}
        self._used: dict[int, float] = {}

    def _ranks(self) -> list[dict[str, str]]:
        """What torchrun sets for each process."""
        count = self.command.processes
        if count == 1:
            return [{}]
        world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [{**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]

    def wait(self, until: float, victims: Sequence[int] = ()) -> bool:
        """Wait for the end, or kill once all together have used ``until`` processor seconds; says whether it did.

        Args:
            victims: numbers of the processes to kill; none: all. The others may end by themselves.
        """
        began, killed = time.monotonic(), False
        while len(self.codes) < len(self.pids):
            for pid in self.pids:
                if pid not in self.codes:
                    # Left as a zombie, so that nothing else gets its number before its group has been killed.
                    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if ended is not None:
                        by_itself = ended.si_code == os.CLD_EXITED
                        self.codes[pid] = ended.si_status if by_itself else -ended.si_status
            left = until - self.used()
            if not killed and left <= 0:
                chosen = [self.pids[number] for number in victims if len(self.pids) > 1] or self.pids
                alive = [pid for pid in chosen if pid not in self.codes]
                self._kill(alive)
                killed = bool(alive)
                until = float("inf")
            if time.monotonic() - began > LIMIT:
                self._kill(self.pids)
                raise SystemExit(f"{self.command} has hung for {LIMIT} s:\n{self.tail()}")
            # No sooner than every core can have used them up; looking often would cost more than the command itself.
            time.sleep(min(0.05, max(0.003, left / (os.cpu_count() or 1))))
        self._kill(self.pids)  # what they have started themselves
        for pid in self.pids:
            os.waitpid(pid, 0)
        return killed and any(code == -signal.SIGKILL for code in self.codes.values())

    def used(self) -> float:
        """Processor seconds so far of the processes and all that they have started."""
        import psutil

        for each in self._family(self.pids):
            with contextlib.suppress(psutil.Error):
                times = each.cpu_times()
                self._used[each.pid] = times.user + times.system
        return sum(self._used.values())

    @staticmethod
    def _family(pids: Sequence[int]) -> list[Any]:
        """The processes that run, and those that they have started, in other sessions (torchrun's) too."""
        import psutil

        found = []
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                found += [process, *process.children(recursive=True)]
        return found

    def _kill(self, pids: Sequence[int]) -> None:
        """SIGKILL to processes and all that they have started."""
        import psutil

        for each in self._family(pids):
            with contextlib.suppress(psutil.Error):
                each.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]


def _fork(command: Command, environment: dict[str, str], log: int) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(log, stream)
        os.environ.update(environment)
        command.run()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:  # noqa: BLE001 (a fork must not come back)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def identity(path: Path) -> tuple[int, int, str]:
    """Differs once a file is written again, even with the same content."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, digest(path)


def digest(path: Path) -> str:
    """Of the content; safetensors orders its metadata differently each time."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        length = 8 + int.from_bytes(content[:8], "little")
        content = json.dumps(json.loads(content[8:length]), sort_keys=True).encode() + content[length:]
    return hashlib.sha256(content).hexdigest()


class Work:
    """A command to kill, and what it must have made."""

    name = ""
    what = ""  # for the table
    unfinished: tuple[str, ...] = ()  # patterns of files that say nothing about the result

    def __init__(self, scratch: Path):
        self.scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)

    def commands(self, folder: Path) -> list[Command]:
        """One is drawn for each start; the first makes the result to reach."""
        raise NotImplementedError

    def victims(self, generator: random.Random, command: Command) -> tuple[int, ...]:
        """Numbers of the processes to kill."""
        return tuple(range(command.processes))

    def finished(self, folder: Path) -> Files:
        """What must never be made again."""
        raise NotImplementedError

    def result(self, folder: Path) -> Files:
        """What must equal the uninterrupted run's."""
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {
            path.relative_to(folder).as_posix(): digest(path)
            for path in files
            if not any(path.match(pattern) for pattern in self.unfinished)
        }


class Generate(Work):
    name, what = "generate", "`vidrd generate`, 4 clips of 4 frames: clips, states, MP4"
    unfinished = ("job.lock", "settings.json")
    clips = 4

    def options(self) -> tuple[str, ...]:
        made = ("--model", "demo", "--steps", "2", "--frames", "4", "--overlap-frames", "2", "--quiet")
        return (*made, "--device", "cpu")

    def commands(self, folder: Path) -> list[Command]:
        video = ("--prompt", PROMPT, "--clips", str(self.clips), "--output", str(folder / "video.mp4"))
        return [Command("vidrd_core.cli", ("generate", *self.options(), *video))]

    def finished(self, folder: Path) -> Files:
        return {p.name: identity(p) for p in clip_files(folder / "video.mp4.state")}


def clip_files(state: Path) -> list[Path]:
    """Both files of every finished clip."""
    clips = sorted(state.glob("clip_*.safetensors"))
    return [path for clip in clips for path in (clip, clip.with_name(clip.name.replace("clip_", "state_")))]


class Videos(Generate):
    name, what = "videos", "`vidrd generate --videos` on two processes, 4 videos of 2 clips; one or both killed"
    unfinished = ("*.lock", "settings.json", "videos.json")

    def commands(self, folder: Path) -> list[Command]:
        listed = self.scratch / "videos.txt"
        if not listed.exists():
            listed.write_text("".join(f"{PROMPT}|a blue square moves up, {n}\n" for n in range(4)), encoding="utf-8")
        videos = ("--videos", str(listed), "--output", str(folder), "--keep-states")
        return [Command("vidrd_core.cli", ("generate", *self.options(), *videos), processes=2)]

    def victims(self, generator: random.Random, command: Command) -> tuple[int, ...]:
        return generator.choice([(0,), (1,), (0, 1)])

    def finished(self, folder: Path) -> Files:
        from vidrd_core.jobs.batch import VideosFolder

        videos, found = VideosFolder(folder), {}
        for path in sorted(folder.glob("*.mp4")) if folder.is_dir() else []:
            if path.stem.isdecimal() and videos.is_finished(int(path.stem)):
                found[path.name] = identity(path)
        for state in sorted(folder.glob("*.state")):
            found |= {f"{state.name}/{p.name}": identity(p) for p in clip_files(state)}
        return found


class Train(Work):
    name, what = "train", "`train_unet.py`, 12 steps, a checkpoint every second: weights, averages, optimiser, losses"
    unfinished = ("config.txt", "statistics.jsonl")
    processes = 1

    def __init__(self, scratch: Path):
        super().__init__(scratch)
        shards, self.config = scratch / "shards", scratch / "train.yaml"
        if not shards.exists():
            _shards(shards)
        small = "{block_out_channels: [8, 16], layers_per_block: 1, cross_attention_dim: 128, attention_head_dim: 2, "
        self.config.write_text(
            f"text_model: {json.dumps(str(DEMO))}\nvae: {json.dumps(str(DEMO))}\n"
            f"unet: {small}norm_num_groups: 4, add_temp_conv: true, add_temp_embed: true}}\n"
            f"data: {{shards: [{json.dumps(str(shards))}], sizes: [[32, 32]], frames: [4], workers: 1}}\n"
            "objective: {num_frames: 4, image_share: 0.25, images_per_clip: 2, caption_dropout: 0.1}\n"
            "train: {run: unset, samples: 24, batch_size: 2, micro_batch: 1, warmup_samples: 4, log_samples: 2, "
            "save_samples: 4, tensorboard: false}\n",
            encoding="utf-8",
        )

    def commands(self, folder: Path) -> list[Command]:
        arguments = ("--config", str(self.config), "--train.run", str(folder))
        return [Command("training/train_unet.py", arguments, self.processes)]

    def finished(self, folder: Path) -> Files:
        """A run goes on from its checkpoint; its step must never go back."""
        # Between two renames the checkpoint bears its other name, which a start mends.
        states = [folder / name / "state.json" for name in ("checkpoint", "checkpoint.old")]
        steps = [json.loads(path.read_text(encoding="utf-8"))["step"] for path in states if path.exists()]
        return {f"step {n}": None for n in range(1, max(steps, default=0) + 1)}

    def result(self, folder: Path) -> Files:
        lines = [json.loads(line) for line in (folder / "statistics.jsonl").read_text(encoding="utf-8").splitlines()]
        return {**super().result(folder), "losses": [(line["samples"], line["loss"]) for line in lines]}


def _shards(folder: Path) -> None:
    """A data set of a few clips of moving shapes."""
    import torch

    from vidrd_core.data.media import encode_mp4
    from vidrd_core.data.shards import Sample, ShardWriter
    from vidrd_core.shapes.scenes import draw_scene, render
    from vidrd_core.video import to_uint8

    writer = ShardWriter(folder, {"seed": 1}, samples_per_shard=3)
    for item in range(4):
        scene = draw_scene(torch.Generator().manual_seed(item))
        frames = to_uint8(render([scene], 6))[:, :48, :48]
        info = {"caption": scene.caption, "kind": "video", "width": 48, "height": 48, "frames": 6, "fps": 8.0}
        writer.add(item, [Sample(f"{item:04d}", {"mp4": encode_mp4(frames, 8.0, 9.0)}, {**info, "source": "made"})])
    writer.finish()


class TrainTwo(Train):
    name, what = "train-two", "the same on two processes (gloo), both killed"
    processes = 2


class TwoToOne(Train):
    name, what = "two-to-one", "the same, each start on one or two processes"

    def commands(self, folder: Path) -> list[Command]:
        (command,) = super().commands(folder)
        return [command, Command(command.target, command.arguments, 2)]


class Prepare(Work):
    name, what = "prepare", "`prepare_data.py`, 12 videos, a shard for each pair: shards, index, statistics, sheet"

    def __init__(self, scratch: Path):
        super().__init__(scratch)
        import torch

        from vidrd_core.data.media import encode_mp4
        from vidrd_core.shapes.scenes import draw_scene, render
        from vidrd_core.video import to_uint8

        source, self.config = scratch / "source", scratch / "data.yaml"
        source.mkdir(exist_ok=True)
        for item in range(12):
            scene = draw_scene(torch.Generator().manual_seed(item))
            frames = to_uint8(render([scene], 8))
            (source / f"{item:02d}.mp4").write_bytes(encode_mp4(frames, 8.0, 9.0))
            (source / f"{item:02d}.txt").write_text(scene.caption, encoding="utf-8")
        self.config.write_text(
            f"output: unset\nsource: {{layout: folder, root: {json.dumps(str(source))}}}\n"
            "clip: {fps: 8, frames: 6, min_frames: 4, height: 32, width: 32}\n"
            "filters: {min_side: 16}\nsamples_per_shard: 2\nengine: {workers: 1}\n",
            encoding="utf-8",
        )

    def commands(self, folder: Path) -> list[Command]:
        return [Command("training/prepare_data.py", ("--config", str(self.config), "--output", str(folder)))]

    def finished(self, folder: Path) -> Files:
        tables = sorted(folder.glob("shard-*.json"))
        return {p.name: identity(p) for table in tables for p in (table, table.with_suffix(".tar"))}


KINDS = {kind.name: kind for kind in (Generate, Videos, Train, TrainTwo, TwoToOne, Prepare)}


@dataclass
class Outcome:
    """What the kills of one kind did."""

    what: str
    seconds: float  # processor time of the uninterrupted run
    kills: int = 0
    cold: int = 0  # of them, of new interpreters
    reached: int = 0  # folders that came to their end
    kept: int = 0  # finished pieces that a kill found
    losses: list[str] = field(default_factory=list)

    def row(self) -> str:
        cells = [self.what, self.kills, self.reached, self.kept, len(self.losses), f"{self.seconds:.1f}"]
        return f"| {' | '.join(map(str, cells))} |"


HEAD = (
    "| what | kills | runs to their end | finished pieces found | losses | processor s of a run |\n" + "|---" * 6 + "|"
)


def attack(work: Work, kills: int, seed: int, cold: bool = False) -> Outcome:
    """Kill, start again, compare; ``losses`` says what was lost or differs."""
    generator, log = random.Random(f"{seed} {work.name}"), work.scratch / "log.txt"
    reference = work.scratch / "reference"
    start = Start(work.commands(reference)[0], log, cold)
    start.wait(float("inf"))
    _check_codes(start)
    expected, outcome = work.result(reference), Outcome(work.what, start.used())
    if not expected or not work.finished(reference):
        raise SystemExit(f"{work.name}: the uninterrupted run made nothing:\n{start.tail()}")
    trial = 0
    while outcome.kills < kills:
        folder, killed = work.scratch / f"{trial:03d}", True
        folder.mkdir()
        while killed:
            before = work.finished(folder)
            command = generator.choice(work.commands(folder))
            at, victims = generator.uniform(0, outcome.seconds), work.victims(generator, command)
            start = Start(command, log, cold)
            killed = start.wait(at if outcome.kills < kills else float("inf"), victims)
            after = work.finished(folder)
            outcome.kills += killed
            outcome.cold += killed and cold
            outcome.kept += len(after) if killed else 0
            outcome.losses += [f"{folder}: {n}" for n, value in before.items() if n not in after or after[n] != value]
            if not killed and not outcome.losses:
                _check_codes(start)
        made = work.result(folder)
        outcome.reached += 1
        odd = [name for name in sorted({*made, *expected}) if made.get(name) != expected.get(name)]
        outcome.losses += [f"{folder}: {name}" for name in odd]
        print(f"{work.name}: {outcome.kills} kills, {outcome.reached} runs, {outcome.losses}", file=sys.stderr)
        if not odd:
            shutil.rmtree(folder)
        trial += 1
    return outcome


def _check_codes(start: Start) -> None:
    if any(start.codes.values()):
        raise SystemExit(f"{start.command} ended with {sorted(start.codes.values())}:\n{start.tail()}")


@dataclass(frozen=True)
class Sample:
    """A look at a running process."""

    clips: int
    memory: int  # bytes, resident
    handles: int


class Soak(Generate):
    name = "soak"

    def __init__(self, scratch: Path, clips: int):
        super().__init__(scratch)
        self.clips = clips

    def options(self) -> tuple[str, ...]:
        cheap = ("--steps", "1", "--guidance-scale", "1", "--height", "32", "--width", "32")
        return (*super().options(), *cheap)


def soak(scratch: Path, clips: int, cold: bool) -> list[Sample]:
    """Make a long video and look at its process at every new clip that is seen."""
    import psutil

    work, folder = Soak(scratch, clips), scratch / "soak"
    folder.mkdir()
    start = Start(work.commands(folder)[0], scratch / "log.txt", cold)
    process, samples, state = psutil.Process(start.pids[0]), [], folder / "video.mp4.state"
    number = 0
    try:
        while not os.waitid(os.P_PID, start.pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            while (state / f"clip_{number:05d}.safetensors").exists():
                number += 1
            if number and (not samples or number > samples[-1].clips):
                with contextlib.suppress(psutil.Error):
                    samples.append(Sample(number, process.memory_info().rss, process.num_fds()))
            time.sleep(0.02)
    except KeyboardInterrupt:  # a shorter soak than asked for
        start.wait(0)
        return samples
    start.wait(float("inf"))
    _check_codes(start)
    return samples


def soak_table(samples: Sequence[Sample]) -> tuple[str, bool]:
    """Markdown, and whether memory and handles of the last fifth are those of the second one."""
    total = max(sample.clips for sample in samples)
    fifths = [[s for s in samples if n < 5 * s.clips / total <= n + 1] for n in range(5)]
    lines = ["| clips | looks | memory MiB, most | handles, least to most |", "|---|---|---|---|"]
    peaks, handles = [], []
    for part in fifths:
        peaks.append(max(s.memory for s in part))
        handles.append(max(s.handles for s in part))
        few, memory = min(s.handles for s in part), peaks[-1] / 2**20
        lines.append(f"| {part[0].clips} to {part[-1].clips} | {len(part)} | {memory:.1f} | {few} to {handles[-1]} |")
    return "\n".join(lines), peaks[-1] <= 1.02 * peaks[1] and handles[-1] <= handles[1]


@contextlib.contextmanager
def scratch_folder(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vidrd-reliability-") as name:
        yield Path(name)


def warm(kinds: Sequence[str]) -> None:
    """Import what the commands import, so that a fork need not."""
    import importlib

    sys.path[:0] = [str(ROOT), str(ROOT / "training")]
    modules = ["vidrd_core.jobs.batch", "vidrd_core.cli.loading", "vidrd_core.checkpoints", "vidrd_core.video"]
    if any(kind.startswith("t") for kind in kinds):
        modules += ["train_unet", "torch.distributed"]
    if "prepare" in kinds:
        modules += ["common", "vidrd_core.data.preparation"]
    if "videos" in kinds:
        modules += ["accelerate"]
    for module in modules:
        importlib.import_module(module)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; the exit code says whether anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=(*KINDS, "soak"), metavar="KIND", help=", ".join((*KINDS, "soak")))
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="of each kind (50)")
    parser.add_argument("--clips", type=int, default=1000, metavar="N", help="of the soak (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cold", action="store_true", help="start new interpreters, torchrun for two processes")
    parser.add_argument("--scratch", type=Path, help="an empty folder to work in, which is kept (a temporary one)")
    options = parser.parse_args(arguments)
    warm(options.kinds)
    from contenders import machine

    rows, fine = [], True
    with scratch_folder(options.scratch) as scratch:
        for kind in options.kinds:
            if kind == "soak":
                table, flat = soak_table(soak(scratch / kind, options.clips, options.cold))
                print(f"{machine('cpu')}\n\n{table}\n", flush=True)
                fine &= flat
                continue
            outcome = attack(KINDS[kind](scratch / kind), options.kills, options.seed, options.cold)
            rows.append(outcome.row())
            fine &= not outcome.losses
            for loss in outcome.losses:
                print(f"lost: {loss}", file=sys.stderr)
        if rows:
            print("\n".join((machine("cpu"), "", HEAD, *rows)))
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
