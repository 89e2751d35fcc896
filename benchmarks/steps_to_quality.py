"""Work until a word draws the right object: `best` against single-word textual inversion and against `paper`.

    python -m benchmarks.steps_to_quality [--pictures 2] [--steps 400] [--samples 8] [--ours best]

The peer (`benchmarks.textual_inversion`) learns every word of every picture by itself, one process each, as many at
once as there are cores; its words are kept at several steps. Ours and `paper` learn all words of all pictures in one
pack, once for each limit of steps, all from the same initial words. From every word the same pictures are drawn with
the same noise, and a judge says in which share the object asked for stands alone. The goal is 0.9 of the other's last
share. The last line is JSON:

    ratio           the peer's first mark (0, 10, 20, 40 ... steps) at the goal over ours, steps of one run; null where
                    one of them never reaches it, which is no success of either: see `verdict`
    ratio_passes    the same in U-Net passes of a row that a picture takes: the peer's for all of its words, ours with
                    those of its looks
    against_paper   ratio, ratio_passes and verdict of ours over `paper`
    loss            ours over `paper`, passes until the loss on fixed noise is as low as `paper` ever has it, and in
                    which share of the pictures that happens
    shares          who -> steps -> share of right objects, as far as it was asked, of the peer at every mark; 0 steps
                    are the initial words

Steps are those of a batch of 4 rows; a rate that falls at the end does so before each limit. At the default size few
pictures are drawn: the rates are coarse, the JSON says of how many. The full size is `--pictures 16 --steps 3000`.
The first ten development pictures are left out: most of `best` was chosen on them (one rate of two on all thirty).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.jobs import BASE, JUDGE, SEEN, SET
from benchmarks.peer import peer_command, write_pictures
from benchmarks.processes import at_once, cores
from benchmarks.provenance import say
from benchmarks.recipes import curve, examples, speed
from mcpl.cli.terminal import one_line
from mcpl.config import Placement, Recipe
from mcpl.evaluation import judging
from mcpl.evaluation.sampling import alone, generate
from mcpl.learning.learner import Learner
from mcpl.models.base import BaseModel
from mcpl.orchestration.job import Runner
from mcpl.packing import chunks
from mcpl.recipes import adjust, load
from mcpl.scenes.scene import Scene
from mcpl.seeds import derive_seed
from mcpl.studies import START
from mcpl.types import Example, Job, Pack

Words = dict[str, torch.Tensor]
"""slug -> learned rows [k, D]"""
Learn = Callable[[int], tuple[list[Words], float]]
"""a number of steps -> every picture's words, and the U-Net passes that a picture took on the mean"""


BATCH = 4
"""rows of a step, the peer's and ours"""


class Shares:
    """steps -> share of drawn pictures that show the right object alone; drawn when asked for, once."""

    def __init__(
        self, name: str, learn: Learn, model: BaseModel, pictures: list[Example], jobs: list[Job], samples: int
    ):
        self.name, self._learn, self._model, self._samples = name, learn, model, samples
        self._pairs = list(zip(pictures, jobs, strict=True))
        self.known: dict[int, float] = {}
        self.passes: dict[int, float] = {}

    def __call__(self, steps: int) -> float:
        if steps not in self.known:
            learned, self.passes[steps] = self._learn(steps)
            found = [
                self._right(example, job, words) for (example, job), words in zip(self._pairs, learned, strict=True)
            ]
            self.known[steps] = sum(found) / len(found)
            print(f"{self.name}, {steps} steps: {self.known[steps]:.3f}", flush=True)
        return self.known[steps]

    def _right(self, example: Example, job: Job, words: Words) -> float:
        """Mean over a picture's words."""
        seed = derive_seed(job.seed, "samples")
        concepts = {c.slug: c for c in job.concepts}
        shares = []
        for slug, item in judging.items(job.sentence, Scene.from_json(example.truth)).items():
            drawn = generate(self._model, alone(concepts[slug]), words, self._samples, seed)
            shares.append(judging.right(concepts[slug], item, judging.judge().read(drawn.numpy())))
        return sum(shares) / len(shares)

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
    written = write_pictures(scratch / "pictures", given.pictures, SEEN)
    more = ("--keep", ",".join(map(str, marks(given.steps))), "--lr", str(given.peer_lr))
    commands = [
        peer_command(path, word, given.steps, scratch / path.stem, *more) for path, words in written for word in words
    ]
    for part in chunks(commands, len(cores())):
        at_once(part, 1)

    def kept(steps: int) -> tuple[list[Words], float]:
        found = [
            {word: load_file(scratch / path.stem / f"{word}-{steps}.safetensors")[word] for word in words}
            for path, words in written
        ]
        return found, BATCH * steps * len(commands) / len(written)

    return kept


def our_words(recipe: Recipe, model: BaseModel, pictures: list[Example], curves: list[dict]) -> Learn:
    """The recipe run to a limit of steps, in one pack; each limit is a run of its own. The longest run's curves are
    left in `curves`, as `benchmarks.recipes.speed` reads them."""
    runner = Runner(recipe, Placement(), model)
    jobs = tuple(map(runner.prepare, pictures))

    def learned(steps: int) -> tuple[list[Words], float]:
        own = adjust(recipe, steps=steps)
        results = Learner(model, Pack(jobs), own).run()
        if not curves or steps > max(row["limit"] for row in curves):
            curves[:] = [{"recipe": recipe.name, "seed": 0, "limit": steps} | curve(result, own) for result in results]
        words = [{word.concept.slug: word.vectors for word in result.concepts} for result in results]
        return words, sum(result.sample_passes for result in results) / len(results)

    return learned


def compared(other: Shares, ours: Shares, other_steps: int, our_steps: int) -> dict:
    """ratio, ratio_passes and verdict: the work until 0.9 of the other's last share."""
    none = {"ratio": None, "ratio_passes": None}
    before, last = other(0), other(other_steps)
    if last <= before:
        return none | {"verdict": (
            f"{other.name} never gets past its initial word: {before:.3f} before, {last:.3f} after {other_steps} "
            f"steps; {ours.name} {ours(our_steps):.3f} after {our_steps}"
        )}  # fmt: skip
    goal = 0.9 * last
    own = ours.first_at(goal, marks(our_steps))
    if own is None:
        return none | {"verdict": f"{ours.name} never reaches {goal:.3f}, 0.9 of {other.name}'s last share"}
    if own == 0:
        return none | {"verdict": f"the initial words reach {goal:.3f}, 0.9 of {other.name}'s last share, already"}
    theirs = other.first_at(goal, marks(other_steps))
    return {
        "ratio": round(theirs / own, 2),
        "ratio_passes": round(other.passes[theirs] / ours.passes[own], 2),
        "verdict": f"0.9 of {other.name}'s last share, {goal:.3f}: {theirs} steps, {ours.name} {own}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400, help="of the peer")
    parser.add_argument("--samples", type=int, default=8, help="pictures drawn of each word")
    parser.add_argument("--ours", default="best")
    parser.add_argument("--our-steps", type=int, default=100, help="most steps of ours and of `paper`")
    parser.add_argument("--peer-lr", type=float, default=5e-4)
    parser.add_argument("--write", type=Path, help="also keep the last line in this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ours_recipe, paper = (adjust(load(name), **START) for name in (given.ours, "paper"))
    runner, pictures = Runner(ours_recipe, Placement()), list(examples(SET, "dev", given.pictures, SEEN))
    jobs = [runner.prepare(example) for example in pictures]
    own_curves, paper_curves = [], []
    with tempfile.TemporaryDirectory() as name:
        peer, plain, ours = (
            Shares(who, learn, runner.model, pictures, jobs, given.samples)
            for who, learn in (
                ("the peer", peers_words(given, Path(name))),
                ("paper", our_words(paper, runner.model, pictures, paper_curves)),
                (given.ours, our_words(ours_recipe, runner.model, pictures, own_curves)),
            )
        )
        found = compared(peer, ours, given.steps, given.our_steps)
        against_paper = compared(plain, ours, given.our_steps, given.our_steps)
        for steps in marks(given.steps):
            peer(steps)
        ours(given.our_steps)
    passes, reached = speed([*own_curves, *paper_curves], ours_recipe.name, "paper")
    print(found["verdict"], against_paper["verdict"], sep="\n")
    say(found | {
        "against_paper": against_paper,
        "loss": {"passes_over_paper": passes and round(passes, 3), "reached": reached},
        "shares": {
            each.name: {str(step): round(share, 4) for step, share in sorted(each.known.items())}
            for each in (peer, plain, ours)
        },
        "drawn_at_each_mark": given.samples * sum(len(job.concepts) for job in jobs),
        "recipe": given.ours, "peer_lr": given.peer_lr,
    }, "benchmarks.steps_to_quality", given.write, BASE, JUDGE)  # fmt: skip


if __name__ == "__main__":
    with one_line("benchmarks.steps_to_quality"):
        main()
