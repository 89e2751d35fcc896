"""Steps until a word draws the right object: `best` against single-word textual inversion, on the same pictures.

    python -m benchmarks.steps_to_quality [--pictures 2] [--steps 400] [--samples 8] [--ours best]

The peer (`benchmarks.textual_inversion`) learns every word of every picture by itself, one process each, as many at
once as there are cores; its words are kept at several steps. Ours learns all words of all pictures in one pack, once
for each limit of steps, from the same initial words. From every word the same pictures are drawn with the same
noise, and a judge says in which share the object asked for stands alone. The goal is 0.9 of the peer's last share. The
last line is JSON:

    ratio        the peer's first mark (0, 10, 20, 40 ... steps) at the goal over ours, steps of one run; null where
                 one of them never reaches it: see `verdict`
    verdict      in words
    peer, ours   steps -> share of right objects, as far as it was asked; 0 steps are the initial words

Steps are those of a batch of 4 rows. At the default size few pictures are drawn: the rates are coarse, the JSON says
of how many. The full size is `--pictures 16 --steps 3000`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.jobs import BASE, JUDGE, SET
from benchmarks.peer import peer_command, write_pictures
from benchmarks.processes import at_once, cores
from benchmarks.provenance import say
from benchmarks.recipes import examples
from mcpl.config import Placement, Recipe
from mcpl.evaluation.evaluate import _judged
from mcpl.evaluation.sampling import alone, generate
from mcpl.learning.learner import Learner
from mcpl.models.base import BaseModel
from mcpl.orchestration.job import Runner
from mcpl.packing import chunks
from mcpl.recipes import adjust, load
from mcpl.scenes.world import shapes
from mcpl.seeds import derive_seed
from mcpl.types import Example, Job, Pack

Words = dict[str, torch.Tensor]
"""slug -> learned rows [1, D]"""
Learn = Callable[[int], list[Words]]
"""a number of steps -> every picture's words"""


class Shares:
    """steps -> share of drawn pictures that show the right object alone; drawn when asked for, once."""

    def __init__(
        self, name: str, learn: Learn, model: BaseModel, pictures: list[Example], jobs: list[Job], samples: int
    ):
        self.name, self._learn, self._model, self._samples = name, learn, model, samples
        self._pairs = list(zip(pictures, jobs, strict=True))
        self.known: dict[int, float] = {}

    def __call__(self, steps: int) -> float:
        if steps not in self.known:
            found = [
                self._right(example, job, words)
                for (example, job), words in zip(self._pairs, self._learn(steps), strict=True)
            ]
            self.known[steps] = sum(found) / len(found)
            print(f"{self.name}, {steps} steps: {self.known[steps]:.3f}", flush=True)
        return self.known[steps]

    def _right(self, example: Example, job: Job, words: Words) -> float:
        """Mean over a picture's words."""
        seed = derive_seed(job.seed, "samples")
        drawn = {c.slug: generate(self._model, alone(c), words, self._samples, seed) for c in job.concepts}
        (shares,) = _judged(job, example.truth, (drawn,))
        return sum(shares.values()) / len(shares)

    def first_at(self, goal: float, marks: list[int]) -> int | None:
        """The first mark that reaches the goal."""
        return next((step for step in marks if self(step) >= goal), None)


def marks(most: int) -> list[int]:
    """0, 10, 20, 40 ... and the most."""
    steps, step = [0], 10
    while step < most:
        steps.append(step)
        step *= 2
    return [*steps, most]


def peers_words(given: argparse.Namespace, scratch: Path) -> Learn:
    """Every word of every picture learned by itself to the last step; answers from what was kept on the way."""
    written = write_pictures(scratch / "pictures", given.pictures)
    more = ("--keep", ",".join(map(str, marks(given.steps))), "--lr", str(given.peer_lr))
    commands = [
        peer_command(path, word, given.steps, scratch / path.stem, *more) for path, words in written for word in words
    ]
    for part in chunks(commands, len(cores())):
        at_once(part, 1)

    def kept(steps: int) -> list[Words]:
        return [
            {word: load_file(scratch / path.stem / f"{word}-{steps}.safetensors")[word] for word in words}
            for path, words in written
        ]

    return kept


def our_words(recipe: Recipe, model: BaseModel, jobs: list[Job]) -> Learn:
    """The recipe run to a limit of steps, in one pack; each limit is a run of its own."""

    def learned(steps: int) -> list[Words]:
        results = Learner(model, Pack(tuple(jobs)), adjust(recipe, steps=steps)).run()
        return [{word.concept.slug: word.vectors for word in result.concepts} for result in results]

    return learned


def compared(peer: Shares, ours: Shares, peer_steps: int, our_steps: int) -> tuple[float | None, str]:
    """(ratio, in words)"""
    before, last = peer(0), peer(peer_steps)
    if last <= before:
        return None, (
            f"the peer never gets past its initial word: {before:.3f} before, {last:.3f} after {peer_steps} steps; "
            f"ours {ours(our_steps):.3f}"
        )
    goal = 0.9 * last
    own = ours.first_at(goal, marks(our_steps))
    if own is None:
        return None, f"ours never reaches {goal:.3f}, 0.9 of the peer's last share"
    if own == 0:
        return None, f"our initial words reach {goal:.3f}, 0.9 of the peer's last share, already"
    theirs = peer.first_at(goal, marks(peer_steps))
    return round(theirs / own, 2), f"0.9 of the peer's last share, {goal:.3f}: peer {theirs} steps, ours {own}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400, help="of the peer")
    parser.add_argument("--samples", type=int, default=8, help="pictures drawn of each word")
    parser.add_argument("--ours", default="best")
    parser.add_argument("--our-steps", type=int, default=160, help="most steps of ours")
    parser.add_argument("--peer-lr", type=float, default=5e-4)
    parser.add_argument("--write", type=Path, help="also keep the last line in this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe = adjust(load(given.ours), initializer=",".join(shapes("named")), initializer_length="words")
    runner, pictures = Runner(recipe, Placement()), list(examples(SET, "dev", given.pictures))
    jobs = [runner.prepare(example) for example in pictures]
    with tempfile.TemporaryDirectory() as name:
        peer, ours = (
            Shares(who, learn, runner.model, pictures, jobs, given.samples)
            for who, learn in (
                ("peer", peers_words(given, Path(name))),
                (given.ours, our_words(recipe, runner.model, jobs)),
            )
        )
        ratio, verdict = compared(peer, ours, given.steps, given.our_steps)
    print(verdict)
    say({
        "ratio": ratio, "verdict": verdict,
        "peer": {str(step): round(share, 4) for step, share in sorted(peer.known.items())},
        "ours": {str(step): round(share, 4) for step, share in sorted(ours.known.items())},
        "drawn_at_each_mark": given.samples * sum(len(job.concepts) for job in jobs),
        "recipe": given.ours, "peer_lr": given.peer_lr,
    }, "benchmarks.steps_to_quality", given.write, BASE, JUDGE)  # fmt: skip


if __name__ == "__main__":
    main()
