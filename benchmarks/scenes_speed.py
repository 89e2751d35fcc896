"""How many scenes a second one core samples, renders and captions: `python -m benchmarks.scenes_speed`."""

from __future__ import annotations

import json
import time

from mcpl.scenes.render import render
from mcpl.scenes.training.data import scene_and_caption


def main(count: int = 5000) -> None:
    render(scene_and_caption(0, 0)[0])
    started = time.process_time()
    for index in range(count):
        render(scene_and_caption(0, index)[0])
    print(json.dumps({"scenes_per_s": round(count / (time.process_time() - started)), "n": count}))


if __name__ == "__main__":
    main()
