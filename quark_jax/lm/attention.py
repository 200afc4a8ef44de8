"""Causal attention of whole sequences, as XLA has it or by a TPU kernel that never holds the
scores; and of one position to a cache."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jax.sharding import PartitionSpec

from quark_jax.nn.placement import BATCH_AXES, batch_shards, current_mesh, platform
from quark_jax.nn.stack import KEPT

_BLOCKS = (512, 256, 128)  # positions; the kernel takes multiples of 128


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array | None = None,
    *,
    kind: str = "auto",
) -> jax.Array:
    """Causal attention, [batch, heads, time, dim] with keys and values [batch, kv_heads, time, dim]
    -> [batch, heads, time, dim]; nothing passes between unlike `segments` [batch, time].

    `kind` "splash" takes splash attention (`jax.experimental.pallas.ops.tpu`), "xla"
    `jax.nn.dot_product_attention`, and "auto" splash in a step that is traced for TPUs, where it
    fits. Raises ValueError where "splash" does not fit.
    """
    if takes_splash(query.shape, key.shape, kind):
        return _splash(query, key, value, segments)
    mask = None
    if segments is not None:
        mask = jnp.tril(segments[:, None, :, None] == segments[:, None, None, :])
    query, key, value = (a.swapaxes(1, 2) for a in (query, key, value))
    y = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=mask is None)
    return y.swapaxes(1, 2)


def as_cached(heads: jax.Array) -> jax.Array:
    """Keys or values [batch, kv_heads, slots, dim] as `attend_step` takes them: as they are on a
    CPU, else side by side, [batch, slots, kv_heads * dim]; a head alone has too few channels for
    all lanes of a TPU."""
    if platform() == "cpu":
        return heads
    batch, _, slots, _ = heads.shape
    return heads.swapaxes(1, 2).reshape(batch, slots, -1)


def attend_step(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention of one position of each sequence, queries [batch, heads, 1, dim] -> same, to keys
    and values as `as_cached` gives them, under `mask` [batch, slots].

    Where heads are side by side all of them are one product: every query stands in the channels of
    its head and has zeros in those of the others. That is `kv_heads` times the operations, of which
    there are few; head by head, products of one row of `dim` channels leave most of a TPU idle.
    """
    if key.ndim == 4:
        query, key, value = (a.swapaxes(1, 2) for a in (query, key, value))
        y = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None])
        return y.swapaxes(1, 2)
    batch, heads, _, dim = query.shape
    groups = key.shape[-1] // dim
    own = jnp.asarray(np.repeat(np.eye(groups), heads // groups, axis=0), query.dtype)[..., None]
    scaled = query * np.float32(dim**-0.5).astype(query.dtype)
    rows = (scaled * own).reshape(batch, heads, -1)
    scores = jnp.einsum("bhc,bsc->bhs", rows, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    y = jnp.einsum("bhs,bsc->bhc", weights.astype(value.dtype), value)
    return (y.reshape(batch, heads, groups, dim) * own).sum(2, keepdims=True)


def takes_splash(query: tuple[int, ...], key: tuple[int, ...], kind: str) -> bool:
    """Whether `attend` takes the kernel for queries and keys of these shapes."""
    mesh = current_mesh()
    over = (1, 1) if mesh is None else (batch_shards(mesh), mesh.shape["tensor"])
    fits = not (query[2] % _BLOCKS[-1] or query[0] % over[0] or key[1] % over[1])
    if kind == "splash" and not fits:
        raise ValueError(
            f"attention 'splash': takes no rows of {query[2]} positions, or a batch of {query[0]} "
            f"and {key[1]} heads that do not divide over the devices; make rows a multiple of 128, "
            "or choose attention 'auto'"
        )
    return kind == "splash" or (kind == "auto" and fits and _on_tpu())


def splash_flops(batch: int, heads: int, time: int, dim: int, *, forward: int) -> float:
    """Operations of the kernel in a step that does the forward pass `forward` times and the
    backward pass once. Blocks above the diagonal are left out, those of other segments are not."""
    blocks = time // _block(time)
    pairs = _block(time) ** 2 * blocks * (blocks + 1) / 2
    # Two products forward; backward three for queries, and four for keys and values: one kernel
    # for both has five, but leaves a sum over blocks that the TPU compiler finds dearer.
    return batch * heads * pairs * dim * 2 * (2 * forward + 7)


def _block(time: int) -> int:
    return next(block for block in _BLOCKS if time % block == 0)


def _on_tpu() -> bool:
    return current_mesh() is not None and platform() == "tpu"


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array | None
) -> jax.Array:
    mesh = current_mesh()
    # Off a TPU the kernel is interpreted: slow, and for tests.
    interpret = not _on_tpu()

    def attend(query, key, value, segments):  # of one device
        heads, time = query.shape[1:3]
        block = _block(time)
        sizes = BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        )
        kernel = make_splash_mha(
            MultiHeadMask([CausalMask((time, time))] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=KEPT,
            interpret=interpret,
        )
        ids = None if segments is None else SegmentIds(segments, segments)
        return jax.vmap(kernel)(query, key, value, ids)

    scaled = query * np.float32(query.shape[-1] ** -0.5).astype(query.dtype)
    if mesh is None:
        return attend(scaled, key, value, segments)
    split = PartitionSpec(BATCH_AXES, "tensor")
    rows = None if segments is None else PartitionSpec(BATCH_AXES)
    sharded = jax.shard_map(
        attend, in_specs=(split, split, split, rows), out_specs=split, check_vma=False
    )
    return sharded(scaled, key, value, segments)
