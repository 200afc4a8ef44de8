"""Codebook patterns: in which step and head each code of a dual-stream codec stands.

A step of the language model reads and predicts one token per head. A pattern places the code of
(frame, stream, layer) in one (step, head); every other place holds PAD, and the step after the last
holds END in every head. Delay (MusicGen, arXiv 2306.05284), here with the streams alternating:

    layer 4   p p p a s a s E
    layer 3   p p a s a s p E        two frames, four layers: a acoustic, s semantic, p PAD
    layer 2   p a s a s p p E
    layer 1   a s a s p p p E

Where the target's length is not known beforehand, head 0 announces the end: END is drawn where the
first code of another frame would stand, the codes that lag behind are finished, END follows.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from quark_jax.lm.config import LMConfig

STREAMS = ("acoustic", "semantic")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one head: acoustic codes, then semantic codes, then PAD, then END.

    `acoustic` and `semantic` count the codes of one codec layer, segment lengths included.
    """

    acoustic: int
    semantic: int

    @property
    def pad(self) -> int:
        """The token of places where nothing stands."""
        return self.acoustic + self.semantic

    @property
    def end(self) -> int:
        """The token of the step after the last."""
        return self.acoustic + self.semantic + 1

    @property
    def size(self) -> int:
        """How many tokens there are, PAD and END among them."""
        return self.acoustic + self.semantic + 2

    def first(self, stream):
        """First token of a stream (0 acoustic, 1 semantic; an int or an array)."""
        return stream * self.acoustic


@dataclass(frozen=True)
class Pattern(ABC):
    """Where codes stand: for `codebooks` layers in each stream; `order` names the first stream."""

    codebooks: int
    vocabulary: Vocabulary
    order: tuple[str, str] = STREAMS

    @property
    @abstractmethod
    def heads(self) -> int:
        """Tokens a step."""

    @abstractmethod
    def steps(self, frames):
        """Steps before END for that many frames (an int or an integer array)."""

    @abstractmethod
    def frames(self, steps):
        """Most frames that fit in that many steps; the inverse of `steps`."""

    @abstractmethod
    def place(self, step):
        """What the heads hold at `step` [...]: (frame, turn, layer), each [..., heads].

        `turn` is 0 for the stream that comes first and 1 for the other. A place outside all
        frames has a negative frame.
        """

    @abstractmethod
    def find(self, frame, turn, layer):
        """(step, head) at which that code stands; the inverse of `place`."""

    def _stream(self, turn):
        return turn if self.order == STREAMS else 1 - turn

    def _held(self, step: jax.Array, frames: jax.Array):
        """(frame, stream, layer, whether a code stands there), each [..., heads]."""
        frame, turn, layer = self.place(step)
        held = (frame >= 0) & (frame < jnp.asarray(frames)[..., None])
        return frame, self._stream(turn), layer, held

    def build(
        self, acoustic: jax.Array, semantic: jax.Array, frames: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Lay out codes as tokens.

        Args:
          acoustic, semantic: codes [batch, codebooks, T]; what lies beyond `frames` is not read.
          frames: true frames of each item [batch].
        Returns:
          tokens [batch, steps(T) + 1, heads]: END at step steps(frames), PAD after it; and the
          mask of the targets that are scored, of the same shape: all but PAD. An item without
          frames (a filler in a batch) scores nothing.
        """
        batch, codebooks, length = acoustic.shape
        if codebooks != self.codebooks or semantic.shape != acoustic.shape:
            raise ValueError(
                f"codes have shapes {acoustic.shape} and {semantic.shape}, "
                f"not twice [batch, {self.codebooks}, frames]"
            )
        frames = jnp.asarray(frames)[:, None]
        step = jnp.arange(self.steps(length) + 1)
        frame, stream, layer, held = self._held(step, frames)
        source = (stream * codebooks + layer) * length + jnp.clip(frame, 0, max(length - 1, 0))
        codes = jnp.stack([acoustic, semantic], axis=1).reshape(batch, -1)
        tokens = jnp.take(codes, source, axis=1, mode="clip") + self.vocabulary.first(stream)
        last = jnp.broadcast_to((step == self.steps(frames))[..., None], held.shape)
        tokens = jnp.where(held, tokens, jnp.where(last, self.vocabulary.end, self.vocabulary.pad))
        return tokens.astype(jnp.int32), (held | last) & (frames[..., None] > 0)

    def revert(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Codes of `tokens` [batch, steps + 1, heads]: the inverse of `build`.

        Returns:
          acoustic, semantic [batch, codebooks, T], zero beyond the item's frames, and frames
          [batch], read from where END stands (the last row, where there is none). T is the most
          that the rows can hold.
        """
        batch, rows, _ = tokens.shape
        length = self.frames(rows - 1)
        ends = tokens[:, :, 0] == self.vocabulary.end
        frames = self.frames(jnp.where(ends.any(1), jnp.argmax(ends, axis=1), rows - 1))
        turn, layer, frame = np.meshgrid(
            np.arange(2), np.arange(self.codebooks), np.arange(length), indexing="ij"
        )
        step, head = self.find(frame, turn, layer)
        stream = self._stream(turn)
        codes = jnp.take(tokens.reshape(batch, -1), step * self.heads + head, axis=1)
        codes = codes - self.vocabulary.first(stream)
        codes = jnp.where(frame < frames[:, None, None, None], codes, 0)
        first, second = codes[:, 0], codes[:, 1]
        acoustic, semantic = (first, second) if self.order == STREAMS else (second, first)
        return acoustic, semantic, frames

    def announcement(self, frames):
        """Step at which head 0 may announce that `frames` frames are all."""
        return self.find(frames, 0, 0)[0]

    def targets(
        self, tokens: jax.Array, scored: jax.Array, frames: jax.Array, aligned: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What the steps of `build` should predict: `tokens`, with END announced by head 0 in the
        items whose length is not given (`aligned` [batch] false). Shapes as `build` returns them.
        """
        frames = jnp.asarray(frames)[:, None]
        step = jnp.arange(tokens.shape[1])
        head = jnp.arange(self.heads) == 0
        open_end = ~jnp.asarray(aligned)[:, None] & (frames > 0)
        here = ((step == self.announcement(frames)) & open_end)[..., None] & head
        return jnp.where(here, self.vocabulary.end, tokens), scored | here

    def allowed(
        self, step: jax.Array, frames: jax.Array, aligned: jax.Array | bool = True
    ) -> jax.Array:
        """What may be drawn at `step` of items that end after, or at most at, `frames` frames.

        Args:
          step, frames, aligned: arrays that broadcast to [...]. Items that are not `aligned` may
            announce their end wherever a frame other than their first would begin.
        Returns:
          mask [..., heads, vocabulary]: the codes of the right stream where a code stands, END
          alone at the last step, PAD alone elsewhere, END beside codes where it may be announced.
        """
        step, frames, aligned = jnp.broadcast_arrays(step, frames, aligned)
        frame, stream, _, held = self._held(step, frames)
        vocabulary = self.vocabulary
        token = jnp.arange(vocabulary.size)
        of = jnp.where(token < vocabulary.pad, (token >= vocabulary.acoustic).astype(int), -1)
        codes = held[..., None] & (of == stream[..., None])
        last = (step == self.steps(frames))[..., None]
        pads = (~held & ~last)[..., None] & (token == vocabulary.pad)
        opens = (step == self.announcement(frame[..., 0])) & (frame[..., 0] > 0) & ~aligned
        ends = last | (opens[..., None] & held & (jnp.arange(self.heads) == 0))
        return codes | pads | (ends[..., None] & (token == vocabulary.end))

    def settle(
        self, drawn: jax.Array, step: jax.Array, frames: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Act on an announced end.

        Args:
          drawn: tokens [batch, heads] drawn at `step` [] under `allowed`.
          frames: frames [batch] of each item, or the bound on them.
        Returns:
          the tokens that stand at this step, and the frames of each item from here on.
        """
        frame = self.place(step)[0][..., 0]
        announced = (drawn[:, 0] == self.vocabulary.end) & (frame >= 0) & (frame < frames)
        frames = jnp.where(announced, frame, frames)
        held = self._held(step, frames)[3]
        last = (step == self.steps(frames))[:, None]
        special = jnp.where(last, self.vocabulary.end, self.vocabulary.pad)
        return jnp.where(held, drawn, special), frames


class Delay(Pattern):
    """One position a stream, two a frame; layer k lags k steps. 2T + N - 1 steps, N heads."""

    @property
    def heads(self):
        return self.codebooks

    def steps(self, frames):
        return 2 * frames + self.codebooks - 1

    def frames(self, steps):
        return (steps - self.codebooks + 1) // 2

    def place(self, step):
        layer = jnp.arange(self.codebooks)
        position = jnp.asarray(step)[..., None] - layer
        return position // 2, position % 2, jnp.broadcast_to(layer, position.shape)

    def find(self, frame, turn, layer):
        return 2 * frame + turn + layer, layer


class Parallel(Pattern):
    """A frame a step, both streams and all layers at once. T steps, 2N heads."""

    @property
    def heads(self):
        return 2 * self.codebooks

    def steps(self, frames):
        return frames

    def frames(self, steps):
        return steps

    def place(self, step):
        head = jnp.arange(self.heads)
        frame = jnp.asarray(step)[..., None] + 0 * head
        return frame, head // self.codebooks + 0 * frame, head % self.codebooks + 0 * frame

    def find(self, frame, turn, layer):
        return frame + 0 * (turn + layer), turn * self.codebooks + layer


class Flat(Pattern):
    """A code a step, layer by layer and stream by stream, PAD in the heads of other layers.
    2NT steps, N heads."""

    @property
    def heads(self):
        return self.codebooks

    def steps(self, frames):
        return 2 * self.codebooks * frames

    def frames(self, steps):
        return steps // (2 * self.codebooks)

    def place(self, step):
        layer = jnp.arange(self.codebooks)
        step = jnp.asarray(step)[..., None]
        position = step // self.codebooks
        frame = jnp.where(step % self.codebooks == layer, position // 2, -1)
        return frame, position % 2 + 0 * frame, layer + 0 * frame

    def find(self, frame, turn, layer):
        return (2 * frame + turn) * self.codebooks + layer, layer


def make_pattern(config: LMConfig) -> Pattern:
    """The pattern that `config` names, over its codec's vocabulary."""
    vocabulary = Vocabulary(
        config.acoustic_size * config.max_segment, config.semantic_size * config.max_segment
    )
    kind = {"delay": Delay, "parallel": Parallel, "flat": Flat}[config.pattern]
    return kind(config.codebooks, vocabulary, config.order)
