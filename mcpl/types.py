"""The nouns of mcpl, in the order in which a picture meets them. Whoever reads this page can tell the story.

One legend of axes serves the whole project:

    J  jobs in a pack (one job = one picture and its sentence)
    B  rows of a U-Net batch (several per job: other noise, time step and template)
    L  tokens of a prompt, start and end included
    S  learned rows (vectors) of all jobs of a pack together
    P  concepts (placeholder words) of one job
    D  width of a learned row: the text encoder's input embeddings (SD XL: both encoders' side by side)
    C h w  channels, height, width of latents
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Concept:
    """One word to learn: its placeholder, what it starts from, and the adjectives bound to it."""

    slug: str
    """Lower-case name, written `<slug>` in sentences."""
    initializer: str | None = None
    """Ordinary word given as `<slug:word>`; None leaves the choice to the recipe."""
    adjectives: tuple[str, ...] = ()
    """Ordinary, frozen words directly before the placeholder (Bind adj)."""
    is_object: bool = True
    """False for relation words and the like (MCPL-all): learned, but no part of the attention mask."""

    @property
    def placeholder(self) -> str:
        return f"<{self.slug}>"


Role = Literal["word", "adjective", "placeholder"]


@dataclass(frozen=True)
class Word:
    """One word of a sentence with the part that it plays."""

    text: str
    role: Role
    concept: int | None = None
    """Index into `Sentence.concepts`: the placeholder's own, or the one that the adjective is bound to."""


@dataclass(frozen=True)
class Sentence:
    """A parsed sentence: what is learned, what is bound, what is ordinary."""

    text: str
    words: tuple[Word, ...]
    concepts: tuple[Concept, ...]


@dataclass(frozen=True)
class Example:
    """One row of a dataset: a picture as stored bytes, its sentence, optional truth for scoring."""

    id: str
    image: bytes = field(repr=False)
    text: str
    masks: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Concept slug -> PNG; pixels above 127 belong to the object. For scoring, and for the baselines that are given
    masks (`break-a-scene`, `masked-inversion`); no other recipe sees them."""
    truth: str | None = field(default=None, repr=False)
    """JSON of the rendered scene, where the picture is one."""
    group: str | None = None
    """Name shared by pictures that show the same concepts (MCPL-diverse); None for a picture by itself."""

    @property
    def pictures(self) -> tuple[Example, ...]:
        """Itself, so that a picture and a `Group` are read alike."""
        return (self,)


@dataclass(frozen=True)
class Group:
    """Pictures that share their words (MCPL-diverse): learned as one job, kept as one row of the bank."""

    id: str
    """the group's name"""
    pictures: tuple[Example, ...]
    """in the dataset's order"""


@dataclass(frozen=True)
class Prompt:
    """Token rows of one sentence in each of its templates; T templates, L tokens, slots local to the job."""

    token_ids: Tensor
    """[T, L] int64: ordinary ids; a placeholder position keeps the id of an ordinary token."""
    slot_ids: Tensor
    """[T, L] int64: local index of the learned row that replaces the input embedding, or -1."""
    concept_ids: Tensor
    """[T, L] int64: concept of a placeholder or of an adjective bound to it, or -1 (the contrastive groups)."""
    placeholder: Tensor
    """[T, L] bool: True at placeholder positions, False at bound adjectives and ordinary words."""


@dataclass(frozen=True)
class View:
    """One sentence about one picture of a job: what a row of a step, or a look, is made from."""

    sentence: Sentence
    """its concepts are all of the job's, also those that it does not name"""
    prompt: Prompt
    picture: int
    """index into the job's latents"""
    look: int
    """which look's masks belong to the picture"""
    objects: tuple[int, ...]
    """the concepts that it names and whose masks are united"""
    mirrored: bool = False
    """the picture is its look's, left and right exchanged"""
    share: float = 1.0
    """how often rows are drawn from it, against the job's other views"""


@dataclass(frozen=True)
class Job:
    """One picture and its sentence, or several that share words (MCPL-diverse): everything constant, computed once."""

    id: str
    latents: Tensor
    """[N, C, h, w] scaled latents of the pictures (the encoder's mean)"""
    looks: tuple[View, ...]
    """the given pictures with their whole sentences: where masks, maps and the honest curve come from"""
    views: tuple[View, ...]
    """what training rows are drawn from; the looks themselves unless the recipe says otherwise"""
    initial: Tensor
    """[slots, D] learned rows at step 0."""
    seed: int
    """Seeds the job's own generators; derived from (recipe seed, example id)."""
    masks: Tensor | None = None
    """[looks, P, h, w] 0/1 given masks, for the baselines that learn from them; else None"""

    @property
    def sentence(self) -> Sentence:
        """The first picture's own sentence."""
        return self.looks[0].sentence

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """What is learned, in the order of the slots."""
        return self.looks[0].sentence.concepts


@dataclass(frozen=True)
class Pack:
    """Jobs that share U-Net batches. Which jobs share one never changes what any of them learns."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class PackedBatch:
    """The rows of one optimisation step of a pack."""

    latents: Tensor
    """[B, C, h, w]"""
    noise: Tensor
    """[B, C, h, w]"""
    timesteps: Tensor
    """[B] int64"""
    token_ids: Tensor
    """[B, L] int64"""
    slot_ids: Tensor
    """[B, L] int64 into the pack's S rows, or -1"""
    concept_ids: Tensor
    """[B, L] int64, local to the job, or -1"""
    placeholder: Tensor
    """[B, L] bool"""
    job_ids: Tensor
    """[B] int64, rows of one job are neighbours"""
    objects: Tensor
    """[B, P] bool: concepts whose attention masks belong to the row; P of the job with most"""
    members: Tensor
    """[2, n] row and position of every placeholder and bound adjective"""
    positions: Tensor
    """[B, most of a row] positions of the same, row by row, padded with 0"""
    distinct: Tensor
    """[U] the first row of every different prompt: text is encoded once for each"""
    prompt_ids: Tensor
    """[B] which of these a row says"""


@dataclass(frozen=True)
class Conditioning:
    """What the text encoder says to the U-Net."""

    hidden: Tensor
    """[B, L, D'] text-encoder outputs, attended to by the U-Net and compared by PromptCL."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Added conditions of larger models (SD XL: pooled text, size ids)."""


@dataclass(frozen=True)
class StepOutput:
    """What one optimisation step reports; one number per job, never a batch mean."""

    loss: Tensor
    """[J] the weighted sum that was minimised"""
    terms: Mapping[str, Tensor]
    """term name -> [J] unweighted values"""
    mask_area: Tensor | None = None
    """[J] share of the latents that this step's own mask let through, where the step made one (release only)"""


@dataclass(frozen=True)
class CurvePoint:
    """One look at the honest learning curve: loss on fixed noise and time steps that training never sees."""

    step: int
    fixed_noise_loss: float
    mask_area: float
    """Share of the latent that the attention mask lets through, 0..1; 1 where masks are off."""
    norm: float
    """Mean Euclidean length of the learned rows."""
    prompt_similarity: float
    """Largest cosine similarity between two different concepts' text-encoder outputs; 0 for one concept."""


@dataclass(frozen=True)
class LearnedConcept:
    """One learned word."""

    concept: Concept
    vectors: Tensor = field(repr=False)
    """[n, D] float32: n = vectors per word"""
    attention: Tensor = field(repr=False)
    """[m, m] float32 in 0..1: cross-attention over time-step buckets at the end, divided by its maximum"""
    attention_step0: Tensor = field(repr=False)
    """[m, m] the same before learning"""


@dataclass(frozen=True)
class LearnedConcepts:
    """What a job ends with."""

    job_id: str
    concepts: tuple[LearnedConcept, ...]
    """the maps of each are those of the first picture that names it"""
    curve: tuple[CurvePoint, ...]
    losses: Mapping[str, tuple[float, ...]]
    """term name -> its value at every logged step"""
    steps: int
    """optimisation steps taken"""
    sample_passes: int
    """U-Net sample passes, forward-only passes for masks and curves included (the unit of cost)"""
    kept_step: int | None = None
    """the look whose rows and maps these are, where a recipe keeps its best look; None: the last"""
    by_picture: tuple[tuple[LearnedConcept, ...], ...] = field(default=(), repr=False)
    """for each picture of several, the words that it names with their maps there; no bank keeps them"""

    def of_picture(self, number: int) -> LearnedConcepts:
        """The same as one picture of the job shows it."""
        return replace(self, concepts=self.by_picture[number], by_picture=()) if self.by_picture else self

    @property
    def kept(self) -> CurvePoint:
        """The point of the curve that belongs to the vectors."""
        last = self.curve[-1]
        return next((point for point in self.curve if point.step == self.kept_step), last)


@dataclass(frozen=True)
class Provenance:
    """Where a row comes from: enough to make it again."""

    recipe: str
    """recipe name"""
    recipe_fingerprint: str
    base: str
    base_digest: str
    seed: int
    commit: str
    picture_sha256: str
    sentence_sha256: str

    @property
    def key(self) -> str:
        """Identity of the work itself, whatever machine did it."""
        return f"{self.picture_sha256[:16]}-{self.sentence_sha256[:16]}-{self.recipe_fingerprint}-{self.base_digest}"


@dataclass(frozen=True)
class GroupPicture:
    """One picture of a group's row."""

    id: str
    text: str
    sha256: str
    words: tuple[str, ...] = ()
    """slugs of what its sentence names; empty where it was left out"""
    reason: str | None = None
    """why it was left out"""


@dataclass(frozen=True)
class BankRow:
    """One picture's result: learned, failed with its reason, or skipped because it names nothing to learn.

    Or one group's, under the group's name: one set of words, whatever the number of its pictures.
    """

    id: str
    text: str
    """the sentence; of a group, that of the first picture that was learned from"""
    status: Literal["learned", "failed", "skipped"]
    provenance: Provenance
    reason: str | None = None
    """why nothing was learned, or which pictures of a group were left out"""
    learned: LearnedConcepts | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """wall time of the row's share of its pack; not part of what is compared"""
    host: str = ""
    learned_at: str = ""
    """ISO 8601, UTC; not part of what is compared"""
    pictures: tuple[GroupPicture, ...] = ()
    """of a group, in the dataset's order; empty for a picture by itself"""

    @property
    def used(self) -> tuple[GroupPicture, ...]:
        """A group's pictures that were learned from."""
        return tuple(picture for picture in self.pictures if picture.reason is None)

    @property
    def shown(self) -> str:
        """Id of the picture that `text` tells of."""
        return (self.used or self.pictures)[0].id if self.pictures else self.id

    def picture_of(self, slug: str) -> str:
        """Id of the picture that a word's maps belong to: the first that names it."""
        return next((picture.id for picture in self.used if slug in picture.words), self.shown)

    def told_of(self, slug: str) -> str:
        """The sentence that names a word first."""
        return next((picture.text for picture in self.used if slug in picture.words), self.text)
