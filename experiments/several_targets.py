"""Search for one device, then for three at once: the time of both, and how the fronts differ.

    python experiments/several_targets.py [experiments/quickstart.yaml] [--devices host_avx2 xeon_vnni nvidia_t4]
        [--latency measured] [--evaluations 60] [--selection 128] [--test 500]

Both runs start anew, in a temporary folder. Time is that of the processor, so that other programs do not count; what is
measured once for a machine (latency tables, statistics) is measured before.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from evoquant.config import Experiment, load_experiment
from evoquant.evaluate import prepare
from evoquant.run import build_space, run_experiment
from evoquant.run.targets import load_devices, open_target
from evoquant.types.front import FrontDocument

ROOT = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", type=Path, default=ROOT / "quickstart.yaml")
    parser.add_argument("--devices", nargs="+", default=["host_avx2", "xeon_vnni", "nvidia_t4"])
    parser.add_argument("--latency", default="measured", choices=["measured", "roofline"])
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--selection", type=int, help="selection images")
    parser.add_argument("--test", type=int, help="test images")
    arguments = parser.parse_args()
    experiment = reduced(load_experiment(arguments.experiment), arguments)
    warm(experiment)
    first = experiment.target.device[:1]
    one = experiment.model_copy(update={"target": experiment.target.model_copy(update={"device": first})})
    seconds = [searched(each) for each in (one, experiment)]
    print(f"{len(arguments.devices)} devices take {seconds[1] / seconds[0]:.2f} times as long as one")


def reduced(experiment: Experiment, arguments: argparse.Namespace) -> Experiment:
    """The experiment for these devices, with as much less work as is asked for."""
    changes: dict[str, object] = {
        "target": experiment.target.model_copy(
            update={"device": tuple(arguments.devices), "latency": arguments.latency}
        )
    }
    if arguments.evaluations:
        changes["search"] = experiment.search.model_copy(update={"evaluations": arguments.evaluations})
    counts = {"selection": arguments.selection, "test": arguments.test}
    data = {name: getattr(experiment.data, name).model_copy(update={"count": n}) for name, n in counts.items() if n}
    changes["data"] = experiment.data.model_copy(update=data)
    return experiment.model_copy(update=changes)


def warm(experiment: Experiment) -> None:
    """Measure and calibrate what is kept for later runs."""
    bench = prepare(experiment)
    for name, device in load_devices(experiment).items():
        space = build_space(experiment, bench.captured.graph, device)
        print(open_target(experiment, name, device, space, classes=bench.classes).latency.told)


def searched(experiment: Experiment) -> float:
    """Run a search, print its fronts, and return its seconds of processor time."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        front = asyncio.run(run_experiment(experiment, run_dir=Path(folder)))
        seconds = time.process_time() - started
    print(f"\n{', '.join(experiment.target.device)}: {seconds:.1f} s, {front.images_evaluated} selection images")
    for each in (front, *front.other_targets):
        print(told(each))
    return seconds


def told(front: FrontDocument) -> str:
    narrow, wide, knee = (front.point(name).objectives for name in ("w4a8", "w8a8", "knee"))
    return (
        f"  {front.device}: {len(front.front)} points, hypervolume {front.hypervolume:.3f} of {front.evaluations} "
        f"candidates; W4A8 takes {narrow['latency_ms'] / wide['latency_ms']:.2f} of the latency of W8A8; the knee has "
        f"{knee['average_bits']:.1f} bits\n    {front.verdict}"
    )


if __name__ == "__main__":
    main()
